#include <algorithm>
#include <limits>

#include "tests/support/wrong_device.h"

namespace ringlet::test {
namespace {

class RoundsRotaryTable : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    WrongDevice::rotary_table(pieces, base, table);
    round_to_bf16(table);
  }
};

class RestartsPositions : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    std::vector<Piece> local(pieces.begin(), pieces.end());
    for (Piece& piece : local) piece = {piece.first_row, 1, piece.first_row, piece.row_count};
    WrongDevice::rotary_table(local, base, table);
  }
};

class WidensWindow : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void upload(std::span<const std::byte> host, const Tensor& to) override {
    WrongDevice::upload(host, to);
    if (to.dtype != Dtype::i64) return;
    for (int64_t& first : to.as<int64_t>()) first = std::max<int64_t>(0, first - 1);
  }
};

class EvaluatesWithoutDocuments : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    const ArenaScope scope(arena());
    AttentionStep seen = step;
    if (phase() == "evaluation") {
      seen.first_visible = scratch(Dtype::i64, step.first_visible.shape);
      std::ranges::fill(seen.first_visible.as<int64_t>(), 0);
    }
    WrongDevice::attention_forward(seen, q, kv, state);
  }
};

class StartsElsewhere : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void upload(std::span<const std::byte> host, const Tensor& to) override {
    WrongDevice::upload(host, to);
    if (rank() != 1 || changed_ || to.dtype != Dtype::f32) return;
    for (float& value : to.as<float>()) value += 1e-2f;
    changed_ = true;
  }

 private:
  bool changed_ = false;
};

class MakesOneNan : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    WrongDevice::attention_finish(shape, state, output, lse);
    if (rank() == 2) output.as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  }
};

class DecaysEverything : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override {
    AdamW wrong = settings;
    wrong.weight_decay = 0.1f;
    WrongDevice::adamw(wrong, gradient, weights, first_moment, second_moment, rounded);
  }
};

class LeavesOutBiasCorrection : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override {
    AdamW wrong = settings;
    wrong.step = 1'000'000;
    WrongDevice::adamw(wrong, gradient, weights, first_moment, second_moment, rounded);
  }
};

}  // namespace

std::vector<Defect> device_defects() {
  using enum VerifyMask;
  const char* const output = "attention output";
  const char* const first = "layer 0";
  const char* const next = "next weights";
  return {
      {"cos and sin rounded to bf16", with_device<RoundsRotaryTable>(), causal, output, first,
       "rotary table"},
      {"rotary positions restart on each rank", with_device<RestartsPositions>(), causal, output,
       first, "rotary table"},
      {"window off by one", with_device<WidensWindow>(), window, output, first, output},
      {"evaluation without the document mask", with_device<EvaluatesWithoutDocuments>(), documents,
       "evaluation loss", "position"},
      {"one rank starts from other weights", with_device<StartsElsewhere>(), causal, output, first},
      {"one NaN", with_device<MakesOneNan>(), causal, output,
       "layer 0, head 0, position 24 (rank 2)", output},
      {"weight decay on norms", with_device<DecaysEverything>(), causal, next, "norm"},
      {"AdamW without bias correction", with_device<LeavesOutBiasCorrection>(), causal, next, ""},
  };
}

}  // namespace ringlet::test
