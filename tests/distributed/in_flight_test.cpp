// Who hands memory to a Comm and frees it without a wait is told so, on every device. Builds with NDEBUG do not watch.
#ifndef NDEBUG

#include <gtest/gtest.h>

#include <utility>

#include "kernels/comm/dry.h"
#include "kernels/comm/threads.h"
#include "kernels/dry/dry_backend.h"
#include "kernels/forwarding_backend.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

/// Waits, but for one of its waits (counted from 0) the arena does not hear of it: as if it had been left out.
class ForgetfulBackend : public ForwardingBackend {
 public:
  ForgetfulBackend(std::unique_ptr<Backend> inner, int forgotten)
      : ForwardingBackend(std::move(inner)), forgotten_(forgotten) {}
  Arena& arena() override {
    return std::exchange(forgets_, false) ? deaf_ : ForwardingBackend::arena();
  }

 private:
  void queue_wait(Event event) override {
    event.wait();
    forgets_ = event.timeline != nullptr && waits_++ == forgotten_;
  }
  Arena deaf_{nullptr, 0};
  int forgotten_, waits_ = 0;
  bool forgets_ = false;
};

constexpr int kRingSize = 2;

GptConfig one_layer() {
  GptConfig config;
  config.vocabulary = 32;
  config.layers = 1;
  config.width = 16;
  config.heads = {2, 1, 8};
  config.mlp_width = 24;
  return config;
}

/// Forward and backward: the ring waits for keys, keys, gradients.
void train_once(Backend& device, Comm& ring, Trace& trace) {
  const GptConfig config = one_layer();
  const SequenceLayout layout = make_layout(Layout::zigzag, 40, kRingSize);
  Parameters parameters(config, device, {ring.rank(), kRingSize}, Parameters::Gradients::present);
  parameters.initialise(1);
  parameters.zero_gradients();
  Gpt gpt(parameters);
  const std::vector<int32_t> rows(layout.rows(ring.rank()), 3);
  const Mask mask;
  Step step({device, ring, trace}, {Recompute::selective, 16, 16}, Pass::training, layout, mask,
            config.rope_base, config.heads.head_dim, rows, rows);
  gpt.train(step, 1, [](int64_t) {});
  device.synchronize();
}

/// What is thrown when the devices forget one of their waits.
std::string error_on_threads(const MakeBackend& make_backend, int forgotten) {
  try {
    run_ranks({.ranks = kRingSize}, [&](Comm& world, Trace& trace) {
      ForgetfulBackend device(make_backend(1 << 24, trace), forgotten);
      const std::unique_ptr<Comm> ring = world.split(0);
      train_once(device, *ring, trace);
    });
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

std::string error_when_dry(int forgotten) {
  Traffic traffic;
  Trace trace;
  DryComm ring({0, kRingSize}, traffic);
  ForgetfulBackend device(make_dry_backend(1 << 24), forgotten);
  try {
    train_once(device, ring, trace);
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

void expect_error_of(const std::string& region, const std::string& error) {
  EXPECT_NE(error.find("memory of '" + region + "' is freed"), std::string::npos) << error;
}

TEST(InFlightTest, ARingThatForgetsToWaitIsAnErrorOnEveryDevice) {
  const std::vector<std::function<std::string(int)>> devices{
      [](int forgotten) { return error_on_threads(plain_backend, forgotten); },
      [](int forgotten) { return error_on_threads(late_backend, forgotten); }, error_when_dry};
  for (const auto& error_on : devices) {
    expect_error_of("ring inboxes", error_on(0));
    EXPECT_EQ(error_on(1), "none");  // the wait for the gradients, which come later, covers the keys
    expect_error_of("ring inboxes", error_on(2));
    EXPECT_EQ(error_on(3), "none");
  }
}

/// A step of a world of two rings of one: the optimizer waits for each bucket, then come the sums, then the weights.
std::string error_in_a_step(int forgotten) {
  const TemporaryFolder folder;
  Config config = tiny_training(make_corpus(folder, 6), 2, 1);
  config.train.steps = 1;
  TrainingOptions options;
  options.backend_of = [=](int) -> MakeBackend {
    return [=](int64_t bytes, Trace& trace) {
      return std::make_unique<ForgetfulBackend>(plain_backend(bytes, trace), forgotten);
    };
  };
  try {
    train_case(config, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

TEST(InFlightTest, SumsThatAreNotWaitedForAreAnError) {
  constexpr int kBuckets = 4;  // two layers, embedding, final norm and head
  expect_error_of("inputs", error_in_a_step(kBuckets));
  EXPECT_EQ(error_in_a_step(kBuckets - 1), "none");  // gradients stay where they are
}

TEST(InFlightTest, TheOptimizerHoldsGradientsAndWeights) {
  run_ranks({.ranks = 2}, [](Comm& all_ranks, Trace& trace) {
    constexpr int kBuckets = 3;
    ForgetfulBackend device(plain_backend(1 << 24, trace), 2 * kBuckets - 1);
    const std::unique_ptr<Comm> world = all_ranks.split(0);
    const Parameters parameters(one_layer(), device, {world->rank(), 2}, Parameters::Gradients::present);
    ASSERT_EQ(parameters.buckets().size(), size_t{kBuckets});
    ShardedAdamW optimizer(parameters, *world);
    for (int64_t bucket = kBuckets - 1; bucket >= 0; --bucket) optimizer.start_reduce(bucket);
    EXPECT_THROW(device.arena().rewind(0), Error);
    optimizer.finish_reduce();
    const Arena::Mark mark = device.arena().mark();
    device.arena().allocate("test", Dtype::f32, {1, 1, 1, 1});
    EXPECT_NO_THROW(device.arena().rewind(mark));
    optimizer.update({.learning_rate = 1, .beta1 = 0, .beta2 = 0, .epsilon = 1, .weight_decay = 0,
                      .gradient_scale = 1, .step = 1});
    EXPECT_THROW(device.arena().rewind(0), Error);  // the last of the weights' waits was forgotten
  });
}

}  // namespace
}  // namespace ringlet::test

#endif
