#include <algorithm>
#include <map>

#include "tests/support/wrong_device.h"

namespace ringlet::test {
namespace {

/// Row by row, the rank's own keys and values stand for those that have arrived.
class ReusesFirstKeys : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    if (hop() == 0) own_[step.keys.first_row] = kv;
    const ArenaScope scope(arena());
    const Tensor reused = scratch(Dtype::f32, kv.shape);
    copy(kv, reused);
    for (const auto& [first_row, own] : own_) {
      const int64_t shift = step.keys.first_row - first_row;
      const int64_t begin = std::max<int64_t>(0, -shift);
      const int64_t end = std::min(kv.shape[2], own.shape[2] - shift);
      for (int64_t head = 0; begin < end && head < 2 * step.shape.kv_heads; ++head) {
        const auto row = [&](const Tensor& tensor, int64_t i) {
          return tensor.as<float>().begin() + (head * tensor.shape[2] + i) * step.shape.head_dim;
        };
        std::copy(row(own, begin + shift), row(own, end + shift), row(reused, begin));
      }
    }
    WrongDevice::attention_backward(step, q, reused, gradient, dq, write, dkv);
  }

 private:
  std::map<int64_t, Tensor> own_;  // by the piece's first row
};

/// Knows where the gradients of a rank's own keys and values are summed up.
class KnowsHome : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    if (hop() == 0) home_[step.keys.first_row] = dkv;
    WrongDevice::attention_backward(step, q, kv, gradient, dq, write, dkv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override {
    home_.clear();
    WrongDevice::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
  }

 protected:
  bool is_home(const Tensor& tensor) const {
    return std::ranges::any_of(home_, [&](auto& own) { return own.second.data == tensor.data; });
  }
  std::map<int64_t, Tensor> home_;  // by the piece's first row
};

class LosesHomecoming : public KnowsHome {
 public:
  using KnowsHome::KnowsHome;
  void add(const Tensor& from, const Tensor& to) override {
    if (!is_home(to)) KnowsHome::add(from, to);
  }
};

class SwapsHomecoming : public KnowsHome {
 public:
  using KnowsHome::KnowsHome;
  void add(const Tensor& from, const Tensor& to) override {
    const auto other = std::ranges::find_if(home_, [&](auto& own) {
      return own.second.data != to.data && own.second.size() == to.size();
    });
    KnowsHome::add(from, is_home(to) && other != home_.end() ? other->second : to);
  }
};

class RoundsPartialOutputs : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    WrongDevice::attention_forward(step, q, kv, state);
    round_to_bf16(state.output);
  }
};

class RoundsQueryGradient : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    WrongDevice::attention_backward(step, q, kv, gradient, dq, write, dkv);
    round_to_bf16(dq);
  }
};

class RoundsKeyGradient : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void add(const Tensor& from, const Tensor& to) override {
    WrongDevice::add(from, to);
    round_to_bf16(to);
  }
};

class RoundsLse : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    WrongDevice::attention_finish(shape, state, output, lse);
    round_to_bf16(lse);
  }
};

/// Adds up the blocks' softmaxes as if they all had the same maximum.
class MergesWithoutMaximum : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    const ArenaScope scope(arena());
    const auto copy_of = [&](const Tensor& tensor) {
      const Tensor before = scratch(Dtype::f32, tensor.shape);
      copy(tensor, before);
      return before;
    };
    const AttentionState before{copy_of(state.output), copy_of(state.maximum), copy_of(state.sum)};
    attention_start(state);
    WrongDevice::attention_forward(step, q, kv, state);
    WrongDevice::add(before.output, state.output);
    WrongDevice::add(before.sum, state.sum);
    const std::span<float> maximum = state.maximum.as<float>();
    for (size_t i = 0; i < maximum.size(); ++i) {
      maximum[i] = std::max(maximum[i], before.maximum.as<float>()[i]);
    }
  }
};

/// Gives the backward pass of each block the LSE of that block alone.
class UsesBlockLse : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    const ArenaScope scope(arena());
    const auto [heads, kv_heads, dim] = step.shape;
    const int64_t rows = q.shape[1];
    const AttentionState state{scratch(Dtype::f32, {heads, rows, dim, 1}),
                               scratch(Dtype::f32, {heads, rows, 1, 1}),
                               scratch(Dtype::f32, {heads, rows, 1, 1})};
    AttentionGradient local = gradient;
    local.lse = scratch(Dtype::f32, {heads, rows, 1, 1});
    attention_start(state);
    attention_forward(step, q, kv, state);
    attention_finish(step.shape, state, scratch(Dtype::f32, {rows, heads * dim, 1, 1}), local.lse);
    WrongDevice::attention_backward(step, q, kv, local, dq, write, dkv);
  }
};

class LeavesOutDelta : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_delta(const HeadShape&, const Tensor&, const Tensor&,
                       const Tensor& delta) override {
    fill(0, delta);
  }
};

/// Each block's dQ takes the place of what was there.
class KeepsLastQueryGradient : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    fill(0, dq);
    WrongDevice::attention_backward(step, q, kv, gradient, dq, write, dkv);
  }
};

class SkipsHop : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    if (hop() != 2) WrongDevice::attention_forward(step, q, kv, state);
  }
};

/// The ring is never used, in neither direction.
class StaysAlone : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    if (hop() == 0) WrongDevice::attention_forward(step, q, kv, state);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    if (hop() == 0)
      WrongDevice::attention_backward(step, q, kv, gradient, dq, write, dkv);
    else if (write == Write::set)
      fill(0, dkv);
  }
};

class MixesHeads : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;

 protected:
  /// kv with each KV head in the place of the one before it; lives in the arena.
  Tensor mixed(const HeadShape& shape, const Tensor& kv) {
    const Tensor result = scratch(Dtype::f32, kv.shape);
    const std::span<float> from = kv.as<float>(), to = result.as<float>();
    const size_t head = size_t(kv.shape[2] * kv.shape[3]), heads = size_t(shape.kv_heads);
    for (size_t plane = 0; plane < 2; ++plane) {
      for (size_t h = 0; h < heads; ++h) {
        std::ranges::copy(from.subspan((plane * heads + (h + 1) % heads) * head, head),
                          to.begin() + int64_t((plane * heads + h) * head));
      }
    }
    return result;
  }
};

class MixesHeadsForward : public MixesHeads {
 public:
  using MixesHeads::MixesHeads;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    const ArenaScope scope(arena());
    MixesHeads::attention_forward(step, q, mixed(step.shape, kv), state);
  }
};

class MixesHeadsBackward : public MixesHeads {
 public:
  using MixesHeads::MixesHeads;
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    const ArenaScope scope(arena());
    MixesHeads::attention_backward(step, q, mixed(step.shape, kv), gradient, dq, write, dkv);
  }
};

}  // namespace

std::vector<Defect> attention_defects() {
  using enum VerifyMask;
  const char* const output = "attention output";
  const char* const first = "layer 0";
  const char* const last = "layer 1";  // the backward pass comes to it first
  return {
      {"backward reuses the first hop's keys", with_device<ReusesFirstKeys>(), causal, "dV", last,
       "dV"},
      {"dK, dV lost on the way home", with_device<LosesHomecoming>(), causal, "dV", last, "dV"},
      {"dK, dV of two pieces swapped", with_device<SwapsHomecoming>(), causal, "dV", last, "dV"},
      {"partial outputs rounded to bf16", with_device<RoundsPartialOutputs>(), causal, output,
       first, output},
      {"dQ summed in bf16", with_device<RoundsQueryGradient>(), causal, "dQ", last, "dQ"},
      {"dK, dV travel in bf16", with_device<RoundsKeyGradient>(), causal, "dV", last, "dV"},
      {"LSE rounded to bf16", with_device<RoundsLse>(), causal, "LSE", first, "LSE"},
      {"blocks merged without the maximum", with_device<MergesWithoutMaximum>(), causal, output,
       first, output},
      {"backward with each block's own LSE", with_device<UsesBlockLse>(), causal, "dV", last, "dV"},
      {"backward without rowsum(dO * O)", with_device<LeavesOutDelta>(), causal, "dK", last, "dK"},
      {"dQ of the last hop only", with_device<KeepsLastQueryGradient>(), causal, "dQ", last, "dQ"},
      {"one hop skipped", with_device<SkipsHop>(), causal, output, first, output},
      {"ring ignored: each rank alone", with_device<StaysAlone>(), causal, output, first, output},
      {"KV heads mixed up", with_device<MixesHeadsForward>(), causal, output, first, output},
      {"KV heads mixed up in backward only", with_device<MixesHeadsBackward>(), causal, "dV", last,
       "dV"},
  };
}

}  // namespace ringlet::test
