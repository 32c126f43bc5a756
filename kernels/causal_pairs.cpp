#include "kernels/causal_pairs.h"

#include <algorithm>

namespace ringlet {
namespace {

/// Sum of floor((a * i + b) / m) for i in [0, n), all non-negative, m > 0, in O(log m): Euclid's
/// algorithm on the lattice points under a line (AtCoder Library's floor_sum).
int64_t floor_sum(int64_t n, int64_t m, int64_t a, int64_t b) {
  int64_t sum = 0;
  while (n > 0) {
    sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
    a %= m;
    b %= m;
    const int64_t last = a * n + b;
    n = last / m;
    b = last % m;
    std::swap(m, a);
  }
  return sum;
}

int64_t divide_up(int64_t value, int64_t by) { return value <= 0 ? 0 : (value + by - 1) / by; }

}  // namespace

int64_t causal_pairs(const Piece& queries, const Piece& keys) {
  if (queries.row_count == 0 || keys.row_count == 0) return 0;
  const auto first_query_at = [&](int64_t position) {
    const int64_t row = divide_up(position - queries.first_position, queries.stride);
    return std::min(row, queries.row_count);
  };
  // Queries from `some` on see the first key, those from `all` on see every key.
  const int64_t some = first_query_at(keys.first_position);
  const int64_t all = first_query_at(keys.last_position());
  const int64_t offset = queries.position(some) - keys.first_position;
  return floor_sum(all - some, keys.stride, queries.stride, offset) + (all - some) +
         (queries.row_count - all) * keys.row_count;
}

}  // namespace ringlet
