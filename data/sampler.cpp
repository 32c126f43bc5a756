#include "data/sampler.h"

#include "kernels/check.h"
#include "kernels/random.h"

namespace ringlet {

Permutation::Permutation(uint64_t key, int64_t count) : key_(mix_bits(key)), count_(count) {
  CHECK(count >= 1, "a permutation of ", count, " things");
  while (half_bits_ < 31 && (int64_t{1} << (2 * half_bits_)) < count) ++half_bits_;
}

int64_t Permutation::operator()(int64_t index) const {
  CHECK(index >= 0 && index < count_, "place ", index, " of ", count_);
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half_bits_, right = value & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t mixed = left ^ (mix_bits(key_ ^ mix_bits(right ^ (round << 32))) & mask);
      left = right;
      right = mixed;
    }
    value = (left << half_bits_) | right;
  } while (value >= static_cast<uint64_t>(count_));
  return static_cast<int64_t>(value);
}

int64_t window_of(uint64_t seed, int64_t cursor, int64_t window_count, OrderMode order) {
  CHECK(cursor >= 0 && window_count >= 1, "cursor ", cursor, " of ", window_count, " windows");
  const int64_t epoch = cursor / window_count, place = cursor % window_count;
  if (order == OrderMode::sequential) return place;
  const uint64_t key = mix_bits(seed) ^ static_cast<uint64_t>(epoch);
  return Permutation(key, window_count)(place);
}

}  // namespace ringlet
