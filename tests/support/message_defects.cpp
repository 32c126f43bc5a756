#include <algorithm>

#include "tests/support/defects.h"
#include "kernels/comm/forwarding_comm.h"

namespace ringlet::test {
namespace {

template <class Wrong>
RingParts with_ring() {
  RingParts parts = real_parts();
  parts.ring = [](std::unique_ptr<Comm> ring) { return std::make_unique<Wrong>(std::move(ring)); };
  return parts;
}

template <class Wrong>
RingParts with_world() {
  RingParts parts = real_parts();
  parts.world = [](std::unique_ptr<Comm> world) {
    return std::make_unique<Wrong>(std::move(world));
  };
  return parts;
}

/// What arrives can be read one hop too late; it is passed on in time.
class DeliversLate : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override {
    for (const auto& [tensor, values] : late_)
      std::ranges::copy(values, tensor.as<float>().begin());
    late_.clear();
    std::vector<std::vector<float>> before;
    for (const Message& message : receives) before.push_back(values_of(message.tensor));
    const Event done = ForwardingComm::exchange(sends, receives, after);
    done.wait();
    for (size_t i = 0; i < receives.size(); ++i) {
      const Tensor& tensor = receives[i].tensor;
      late_.emplace_back(tensor, values_of(tensor));
      std::ranges::copy(before[i], tensor.as<float>().begin());
    }
    return done;
  }

 private:
  static std::vector<float> values_of(const Tensor& tensor) {
    const std::span<const float> values = tensor.as<float>();
    return {values.begin(), values.end()};
  }
  std::vector<std::pair<Tensor, std::vector<float>>> late_;
};

class SwapsPieces : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override {
    std::vector<Message> swapped(receives.begin(), receives.end());
    std::ranges::reverse(swapped);
    return ForwardingComm::exchange(sends, swapped, after);
  }
};

class AveragesGradients : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override {
    const Event done = ForwardingComm::reduce_scatter(values, shard, after);
    done.wait();
    for (float& value : shard.as<float>()) value /= float(size());
    return done;
  }
};

class LosesOneRank : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override {
    if (rank() == 1) std::ranges::fill(values.as<float>(), 0.0f);
    return ForwardingComm::reduce_scatter(values, shard, after);
  }
};

class KeepsOldWeights : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override {
    const std::span<float> all = values.as<float>();
    const std::vector<float> before(all.begin(), all.end());
    const Event done = ForwardingComm::all_gather(shard, values, after);
    done.wait();
    if (rank() == 2) std::ranges::copy(before, all.begin());
    return done;
  }
};

class ReportsOwnLoss : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event all_reduce(const Tensor& values, Event after) override {
    return values.size() > 1 ? Event{} : ForwardingComm::all_reduce(values, after);
  }
};

class ClipsByOwnNorm : public ForwardingComm {
 public:
  using ForwardingComm::ForwardingComm;
  Event all_reduce(const Tensor& values, Event after) override {
    return values.size() == 1 ? Event{} : ForwardingComm::all_reduce(values, after);
  }
};

}  // namespace

std::vector<Defect> message_defects() {
  using enum VerifyMask;
  return {
      {"a stale inbox is read", with_ring<DeliversLate>(), causal, "attention output", "layer 0",
       "attention output"},
      {"pieces of a hop swapped", with_ring<SwapsPieces>(), causal, "attention output", "layer 0",
       "attention output"},
      {"gradients averaged, not summed", with_world<AveragesGradients>(), causal, "gradient", ""},
      {"one rank's gradient not summed", with_world<LosesOneRank>(), causal, "gradient", ""},
      {"new weights do not reach a rank", with_world<KeepsOldWeights>(), causal, "weights of ranks",
       "of rank 2 differs"},
      {"loss of a rank's own tokens", with_world<ReportsOwnLoss>(), causal, "train loss",
       "should be"},
      {"norm of a rank's own shard", with_world<ClipsByOwnNorm>(), causal, "gradient norm",
       "should be"},
  };
}

}  // namespace ringlet::test
