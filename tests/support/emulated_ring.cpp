#include "tests/support/emulated_ring.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ringlet::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

float dot(const float* a, const float* b, int64_t count) {
  float sums[8] = {};  // head_dim is a multiple of 8
  for (int64_t i = 0; i < count; i += 8) {
    for (int64_t lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void add_scaled(float scale, const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += scale * from[i];
}

/// At one hop every rank has one block, and every block is at one rank: so the blocks of a hop fill
/// one whole set of values.
class EmulatedRing {
 public:
  EmulatedRing(const RingAttentionCase& c, Layout layout, int ring_size,
               const RingRounding& rounding)
      : c_(c),
        layout_(make_layout(layout, c.length, ring_size)),
        rounding_(rounding),
        n_(c.shape.head_dim),
        scale_(1 / std::sqrt(float(n_))),
        total_(c),
        delta_(total_.lse.size()) {}

  RingAttentionValues<float> run() {
    std::ranges::fill(total_.lse, -kInfinity);
    for (int hop = 0; hop < layout_.ring_size(); ++hop) merge_output(block_outputs(hop));
    store(total_.output);
    for (size_t row = 0; row < delta_.size(); ++row) {
      delta_[row] = dot(&c_.d_output[row * n_], &total_.output[row * n_], n_);
    }
    const RingAttentionValues<float> own = block_gradients(0);
    accumulate(own.dq, total_.dq);
    for (int hop = 1; hop < layout_.ring_size(); ++hop) {
      const RingAttentionValues<float> block = block_gradients(hop);
      accumulate(block.dq, total_.dq);
      accumulate(block.dk, total_.dk);
      accumulate(block.dv, total_.dv);
    }
    accumulate(own.dk, total_.dk);
    accumulate(own.dv, total_.dv);
    for (auto* const gradient : {&total_.dq, &total_.dk, &total_.dv}) store(*gradient);
    return total_;
  }

 private:
  using Keys = std::vector<int64_t>;  // positions

  /// Calls body(query position, head, visible keys) for every query that sees any key of its rank's
  /// block.
  template <class Body>
  void for_each_row(int hop, const Body& body) {
    const int size = layout_.ring_size();
    for (int rank = 0; rank < size; ++rank) {
      for (const Piece& queries : layout_.ranks[rank]) {
        for (int64_t i = 0; i < queries.row_count; ++i) {
          const int64_t position = queries.position(i);
          const Keys keys = visible_keys(position, layout_.ranks[(rank - hop + size) % size]);
          if (keys.empty()) continue;
          for (int64_t head = 0; head < c_.shape.heads; ++head) body(position, head, keys);
        }
      }
    }
  }

  Keys visible_keys(int64_t position, const std::vector<Piece>& pieces) const {
    const int64_t first = c_.mask.first_visible(position);
    Keys keys;
    for (const Piece& piece : pieces) {
      for (int64_t i = 0; i < piece.row_count && piece.position(i) <= position; ++i) {
        if (piece.position(i) >= first) keys.push_back(piece.position(i));
      }
    }
    return keys;
  }

  int64_t row_of(int64_t position, int64_t head) const { return position * c_.shape.heads + head; }
  int64_t kv_offset(int64_t position, int64_t head) const {
    const int64_t kv_head = head / (c_.shape.heads / c_.shape.kv_heads);
    return (position * c_.shape.kv_heads + kv_head) * n_;
  }
  float score(int64_t row, int64_t kv) const {
    return scale_ * dot(&c_.q[row * n_], &c_.k[kv], n_);
  }

  RingAttentionValues<float> block_outputs(int hop) {
    RingAttentionValues<float> block(c_);
    std::ranges::fill(block.lse, -kInfinity);
    std::vector<float> weights;
    for_each_row(hop, [&](int64_t position, int64_t head, const Keys& keys) {
      const int64_t row = row_of(position, head);
      weights.clear();
      for (const int64_t key : keys) weights.push_back(score(row, kv_offset(key, head)));
      const float highest = std::ranges::max(weights);
      double sum = 0;
      for (float& weight : weights) sum += weight = std::exp(weight - highest);
      for (size_t i = 0; i < keys.size(); ++i) {
        add_scaled(weights[i] / float(sum), &c_.v[kv_offset(keys[i], head)], n_,
                   &block.output[row * n_]);
      }
      block.lse[row] = float(double(highest) + std::log(sum));
    });
    return block;
  }

  RingAttentionValues<float> block_gradients(int hop) {
    RingAttentionValues<float> block(c_);
    for_each_row(hop, [&](int64_t position, int64_t head, const Keys& keys) {
      const int64_t row = row_of(position, head);
      const float* const d_output = &c_.d_output[row * n_];
      for (const int64_t key : keys) {
        const int64_t kv = kv_offset(key, head);
        const float weight = std::exp(score(row, kv) - total_.lse[row]);
        const float d_score = scale_ * weight * (dot(d_output, &c_.v[kv], n_) - delta_[row]);
        add_scaled(d_score, &c_.k[kv], n_, &block.dq[row * n_]);
        add_scaled(d_score, &c_.q[row * n_], n_, &block.dk[kv]);
        add_scaled(weight, d_output, n_, &block.dv[kv]);
      }
    });
    return block;
  }

  void merge_output(const RingAttentionValues<float>& block) {
    for (size_t row = 0; row < block.lse.size(); ++row) {
      if (block.lse[row] == -kInfinity) continue;  // saw nothing
      float& lse = total_.lse[row];
      const float difference = block.lse[row] - lse;
      const float share = 1 / (1 + std::exp(-difference));
      for (int64_t i = int64_t(row) * n_; i < int64_t(row + 1) * n_; ++i) {
        float& output = total_.output[i];
        const float change = share * (rounding_.stored(block.output[i]) - output);
        output = rounding_.accumulator(output + change);
      }
      lse = std::max(lse, block.lse[row]) + std::log1p(std::exp(-std::abs(difference)));
    }
  }

  void accumulate(const std::vector<float>& block, std::vector<float>& total) const {
    for (size_t i = 0; i < block.size(); ++i) {
      total[i] = rounding_.accumulator(total[i] + rounding_.stored(block[i]));
    }
  }

  void store(std::vector<float>& values) const {
    std::ranges::transform(values, values.begin(), rounding_.stored);
  }

  const RingAttentionCase& c_;
  const SequenceLayout layout_;
  const RingRounding rounding_;
  const int64_t n_;
  const float scale_;
  RingAttentionValues<float> total_;
  std::vector<float> delta_;  // as lse
};

}  // namespace

RingAttentionValues<float> attend_on_emulated_ring(const RingAttentionCase& c, Layout layout,
                                                   int ring_size, const RingRounding& rounding) {
  return EmulatedRing(c, layout, ring_size, rounding).run();
}

}  // namespace ringlet::test
