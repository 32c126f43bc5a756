#include "tests/support/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/random.h"

namespace ringlet::test {
namespace {

double dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

void add_scaled(double scale, const double* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += scale * from[i];
}

/// One query row of one head.
class ReferenceRow {
 public:
  ReferenceRow(const ReferenceInput& input, int64_t head, int64_t query)
      : input_(input),
        n_(input.shape.head_dim),
        queries_(int64_t(input.query_positions.size())),
        keys_(int64_t(input.key_positions.size())),
        head_(head),
        query_(query),
        scale_(1 / std::sqrt(double(n_))),
        weights_(input.key_positions.size()) {}

  void forward(ReferenceResult& result) {
    double highest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t key = 0; key < keys_; ++key) {
      if (sees(key)) highest = std::max(highest, score(key));
    }
    for (int64_t key = 0; key < keys_; ++key) {
      if (sees(key)) sum += weights_[key] = std::exp(score(key) - highest);
    }
    result.lse[head_ * queries_ + query_] = highest + std::log(sum);
    for (int64_t key = 0; key < keys_; ++key) {
      if (!sees(key)) continue;
      weights_[key] /= sum;
      add_scaled(weights_[key], v(key), n_, result.output.data() + output_offset());
    }
  }

  void backward(ReferenceResult& result) const {
    const double* const d_output = input_.d_output.data() + output_offset();
    const double delta = dot(d_output, result.output.data() + output_offset(), n_);
    for (int64_t key = 0; key < keys_; ++key) {
      if (!sees(key)) continue;
      const double d_score = weights_[key] * (dot(d_output, v(key), n_) - delta) * scale_;
      add_scaled(weights_[key], d_output, n_, result.dv.data() + key_offset(key));
      add_scaled(d_score, q(), n_, result.dk.data() + key_offset(key));
      add_scaled(d_score, k(key), n_, result.dq.data() + query_offset());
    }
  }

 private:
  bool sees(int64_t key) const {
    return input_.first_visible[query_] <= input_.key_positions[key] &&
           input_.key_positions[key] <= input_.query_positions[query_];
  }
  int64_t query_offset() const { return (head_ * queries_ + query_) * n_; }
  int64_t output_offset() const { return (query_ * input_.shape.heads + head_) * n_; }
  int64_t key_offset(int64_t key) const {
    const int64_t kv_head = head_ / (input_.shape.heads / input_.shape.kv_heads);
    return (kv_head * keys_ + key) * n_;
  }
  const double* q() const { return input_.q.data() + query_offset(); }
  const double* k(int64_t key) const { return input_.k.data() + key_offset(key); }
  const double* v(int64_t key) const { return input_.v.data() + key_offset(key); }
  double score(int64_t key) const { return scale_ * dot(q(), k(key), n_); }

  const ReferenceInput& input_;
  int64_t n_, queries_, keys_, head_, query_;
  double scale_;
  std::vector<double> weights_;
};

/// [heads, positions, head_dim] of the tensor named by `stream`.
std::vector<float> values_at(const AttentionCase& c, const std::vector<int64_t>& positions, int64_t heads,
                             int64_t head_dim, uint64_t stream, double scale) {
  const CounterRandom random(c.seed, stream);
  std::vector<float> values;
  for (int64_t head = 0; head < heads; ++head) {
    for (const int64_t position : positions) {
      for (int64_t i = 0; i < head_dim; ++i) {
        const float value = float(scale * random.normal((position * heads + head) * head_dim + i));
        values.push_back(c.dtype == Dtype::bf16 ? to_float(to_bf16(value)) : value);
      }
    }
  }
  return values;
}

std::vector<double> widen(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

}  // namespace

ReferenceResult attention_reference(const ReferenceInput& input) {
  const size_t queries = input.query_positions.size();
  ReferenceResult result;
  result.output.resize(input.q.size());
  result.lse.resize(input.shape.heads * queries);
  result.dq.resize(input.q.size());
  result.dk.resize(input.k.size());
  result.dv.resize(input.v.size());
  for (int64_t head = 0; head < input.shape.heads; ++head) {
    for (int64_t query = 0; query < int64_t(queries); ++query) {
      ReferenceRow row(input, head, query);
      row.forward(result);
      if (!input.d_output.empty()) row.backward(result);
    }
  }
  return result;
}

std::vector<float> AttentionCase::q() const {
  return values_at(*this, positions_of(queries), shape.heads, shape.head_dim, 1, scale);
}

std::vector<float> AttentionCase::k(const std::vector<Piece>& pieces) const {
  return values_at(*this, positions_of(pieces), shape.kv_heads, shape.head_dim, 2, scale);
}

std::vector<float> AttentionCase::v(const std::vector<Piece>& pieces) const {
  return values_at(*this, positions_of(pieces), shape.kv_heads, shape.head_dim, 3, 1);
}

std::vector<float> AttentionCase::d_output() const {
  return values_at(*this, positions_of(queries), 1, shape.q_width(), 4, 1);
}

std::vector<int64_t> AttentionCase::first_visible_of_rows() const {
  std::vector<int64_t> first;
  for (const int64_t position : positions_of(queries)) first.push_back(first_visible(position));
  return first;
}

ReferenceInput AttentionCase::reference_input() const {
  return {shape,      positions_of(queries), first_visible_of_rows(), positions_of(keys),
          widen(q()), widen(k(keys)),        widen(v(keys)),          widen(d_output())};
}

std::vector<Piece> pieces_of(const std::vector<int64_t>& lengths) {
  std::vector<Piece> pieces;
  int64_t position = 0;
  for (const int64_t length : lengths) {
    pieces.push_back({position, 1, position, length});
    position += length;
  }
  return pieces;
}

std::vector<int64_t> positions_of(const std::vector<Piece>& pieces) {
  std::vector<int64_t> positions;
  for (const Piece& piece : pieces) {
    for (int64_t i = 0; i < piece.row_count; ++i) positions.push_back(piece.position(i));
  }
  return positions;
}

AttentionCase one_piece(const HeadShape& shape, int64_t length) {
  return {shape, pieces_of({length}), pieces_of({length})};
}

}  // namespace ringlet::test
