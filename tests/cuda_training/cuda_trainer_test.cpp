// Training on a GPU: what the processor trains, on any ring, with equal bits again, and across both devices.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/comm/threads.h"
#include "kernels/cuda_module.h"
#include "kernels/host_values.h"
#include "tests/support/module_under_test.h"
#include "tests/support/training_case.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

constexpr int64_t kArenaBytes = int64_t{256} << 20;
constexpr double kFirstLoss = 1e-6, kLastLoss = 1e-4;  // relative, in f32: of step 1, and of step 50
constexpr double kBf16Loss = 1e-2;                     // relative, of every step

/// Ranks that share the first GPU.
struct CudaTrainerTest : testing::Test {
  void SetUp() override {
    const CudaModule module = module_under_test();
    if (module.interface == nullptr) GTEST_SKIP() << "no CUDA device: " << module.trouble;
    const CudaMachine machine = module.interface->examine();
    if (!machine.trouble.empty()) GTEST_SKIP() << "no CUDA device: " << machine.trouble;
    interface_ = module.interface;
    memory_ = interface_->make_rank_memory();
    corpus_ = make_corpus(folder_, 6);
  }

  TrainingOptions on_cuda() const {
    TrainingOptions options;
    options.memory = memory_.get();
    options.backend_of = [interface = interface_](int) {
      return MakeBackend([interface](int64_t bytes, Trace& trace) {
        return interface->make_backend({.device = 0, .arena_bytes = std::min(bytes, kArenaBytes)}, trace);
      });
    };
    return options;
  }

  /// Fifty steps as gentle as those of the README. Heads of 64 have tensor cores in bf16.
  Config config(ComputeDtype dtype, int64_t ranks = 1, int64_t ring = 1) const {
    Config config = tiny_training(corpus_, ranks, ring);
    config.run.dtype = dtype;
    config.run.seq_len = 256;
    config.model.width = 128;
    config.model.heads = 2;
    config.model.kv_heads = 1;
    config.model.head_dim = 64;
    config.train.steps = 50;
    config.train.learning_rate = 3e-3;
    config.train.warmup_steps = 40;
    config.run.threads_per_rank = 1;
    return config;
  }

  Trained interrupted(const Config& config, const TrainingOptions& first,
                      const TrainingOptions& second) const {
    const auto path = folder_.path() / "run";
    std::filesystem::remove_all(path);
    return train_interrupted(path, config, config, 24, first, second);
  }

  const CudaInterface* interface_ = nullptr;
  std::unique_ptr<RankMemory> memory_;
  TemporaryFolder folder_;
  std::string corpus_;
};

/// Of trainings that may have begun later: `first` for step 1, growing evenly to `last` for the last step.
void expect_near_losses(const Trained& actual, const Trained& expected, double first, double last) {
  ASSERT_FALSE(actual.records.empty());
  const size_t skipped = expected.records.size() - actual.records.size();
  for (size_t i = 0; i < actual.records.size(); ++i) {
    const MetricsRecord& record = expected.records[skipped + i];
    const double part = double(record.step - 1) / double(record.steps - 1);
    EXPECT_NEAR(actual.records[i].loss, record.loss, (first + part * (last - first)) * record.loss)
        << "step " << record.step;
  }
}

void expect_same_bits(const Trained& actual, const Trained& expected) {
  const std::vector<double> losses = expected.losses();
  EXPECT_EQ(actual.losses(), std::vector<double>(losses.end() - std::ssize(actual.records), losses.end()));
  EXPECT_EQ(actual.weights, expected.weights);
  EXPECT_EQ(actual.first_moments, expected.first_moments);
  EXPECT_EQ(actual.second_moments, expected.second_moments);
}

TEST_F(CudaTrainerTest, FiftyStepsLoseWhatTheProcessorLoses) {
  const Trained on_cpu = train_case(config(ComputeDtype::f32));
  ASSERT_LT(on_cpu.losses().back(), 0.7 * on_cpu.losses().front());
  expect_near_losses(train_case(config(ComputeDtype::f32), on_cuda()), on_cpu, kFirstLoss, kLastLoss);
}

TEST_F(CudaTrainerTest, HeadsOfEightLoseWhatTheProcessorLoses) {
  Config small = config(ComputeDtype::f32);
  small.model.width = 32;
  small.model.heads = 4;
  small.model.kv_heads = 2;
  small.model.head_dim = 8;
  small.model.qk_norm = true;
  small.model.tied_head = false;
  expect_near_losses(train_case(small, on_cuda()), train_case(small), kFirstLoss, kLastLoss);
}

TEST_F(CudaTrainerTest, FiftyStepsInBf16LoseWhatTheProcessorLoses) {
  const Trained on_cpu = train_case(config(ComputeDtype::bf16));
  ASSERT_LT(on_cpu.losses().back(), 0.7 * on_cpu.losses().front());
  expect_near_losses(train_case(config(ComputeDtype::bf16), on_cuda()), on_cpu, kBf16Loss, kBf16Loss);
}

TEST_F(CudaTrainerTest, RanksThatShareAGpuLoseWhatOneLoses) {
  const Trained alone = train_case(config(ComputeDtype::f32), on_cuda());
  for (const auto& [ranks, ring] : {std::pair{2, 2}, {4, 4}, {8, 8}, {4, 2}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks in rings of " << ring);
    const Trained rings = train_case(config(ComputeDtype::f32, ranks, ring), on_cuda());
    expect_near_losses(rings, alone, kFirstLoss, kLastLoss);
  }
}

TEST_F(CudaTrainerTest, RanksThatShareAGpuInBf16LoseWhatOneLoses) {
  const Trained alone = train_case(config(ComputeDtype::bf16), on_cuda());
  for (const auto& [ranks, ring] : {std::pair{2, 2}, {8, 4}}) {
    for (const Layout layout : {Layout::zigzag, Layout::striped}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks in rings of " << ring << ' ' << name_of(layout));
      Config rings = config(ComputeDtype::bf16, ranks, ring);
      rings.run.layout = layout;
      rings.memory.zero_stage = layout == Layout::striped ? 2 : 1;
      expect_near_losses(train_case(rings, on_cuda()), alone, kBf16Loss, kBf16Loss);
    }
  }
}

TEST_F(CudaTrainerTest, TrainingAgainGivesTheSameBits) {
  for (const ComputeDtype dtype : {ComputeDtype::f32, ComputeDtype::bf16}) {
    for (const auto& [ranks, ring] : {std::pair{1, 1}, {4, 2}}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, bf16 " << (dtype == ComputeDtype::bf16));
      Config base = config(dtype, ranks, ring);
      base.train.steps = 20;
      base.train.decay_steps = 20;
      base.train.warmup_steps = 4;
      const Trained once = train_case(base, on_cuda());
      expect_same_bits(train_case(base, on_cuda()), once);
      // The policies compute the same numbers, some of them twice.
      base.memory.recompute = Recompute::full;
      expect_same_bits(train_case(base, on_cuda()), once);
    }
  }
}

TEST_F(CudaTrainerTest, ResumingGivesTheSameBits) {
  for (const ComputeDtype dtype : {ComputeDtype::f32, ComputeDtype::bf16}) {
    const Config base = config(dtype, 2, 2);
    const Trained whole = train_case(base, on_cuda());
    const Trained resumed = interrupted(base, on_cuda(), on_cuda());
    ASSERT_EQ(resumed.records.front().step, 26);
    expect_same_bits(resumed, whole);
  }
}

TEST_F(CudaTrainerTest, CheckpointsGoFromOneDeviceToTheOther) {
  for (const ComputeDtype dtype : {ComputeDtype::f32, ComputeDtype::bf16}) {
    const double tolerance = dtype == ComputeDtype::f32 ? kLastLoss : kBf16Loss;
    const Config base = config(dtype, 2, 2);
    const Trained on_cpu = train_case(base);
    expect_near_losses(interrupted(base, on_cuda(), {}), on_cpu, tolerance, tolerance);
    expect_near_losses(interrupted(base, {}, on_cuda()), on_cpu, tolerance, tolerance);
  }
}

TEST_F(CudaTrainerTest, AnArenaTooSmallNamesTheRegion) {
  for (const int64_t bytes : {int64_t{1} << 16, int64_t{1} << 20, int64_t{2} << 20}) {
    Config small = config(ComputeDtype::bf16, 2, 2);
    small.memory.arena_bytes = bytes;
    try {
      train_case(small, on_cuda());
      ADD_FAILURE() << "trains in " << bytes;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::ContainsRegex("out of memory: '[a-z ]+' asks for [0-9]+ bytes"));
      EXPECT_NE(error.advice, "");
    }
  }
}

/// Bits of the losses and gradients of one window, repeated on a rank that shares the GPU with another.
struct Repeats {
  std::vector<float> first;
  int different = 0;

  void add(const std::vector<float>& values) {
    if (first.empty()) first = values;
    const bool equal = values.size() == first.size() &&
                       std::memcmp(values.data(), first.data(), values.size() * sizeof(float)) == 0;
    different += !equal;
  }
};

std::vector<float> gradients_of_step(Gpt& model, const Parameters& parameters, Step& step) {
  parameters.zero_gradients();
  model.train(step, 1.0f / 1024, [](int64_t) {});
  std::vector<float> values = host_values(step.device, step.losses);
  for (const Bucket& bucket : parameters.buckets()) {
    const std::vector<float> gradients = host_values(step.device, bucket.gradients);
    values.insert(values.end(), gradients.begin(), gradients.end());
  }
  return values;
}

TEST_F(CudaTrainerTest, TwoHundredGradientsHaveTheSameBits) {
  constexpr int kRanks = 2, kRepeats = 200;
  for (const Dtype dtype : {Dtype::bf16, Dtype::f32}) {
    ModelCase window;
    window.config = {.layers = 2, .width = 128, .heads = {2, 1, 64}, .mlp_width = 192, .qk_norm = true};
    window.config.dtype = dtype;
    const GptConfig& gpt = window.config;
    fill_tokens(window, 1024, 5);
    const ValuesByName weights = random_parameters(gpt, 9);
    const SequenceLayout layout = make_layout(Layout::zigzag, 1024, kRanks);
    std::array<Repeats, kRanks> repeats;
    run_ranks({.ranks = kRanks, .memory = memory_.get()}, [&](Comm& world, Trace& trace) {
      const auto device = interface_->make_backend({.device = 0, .arena_bytes = kArenaBytes}, trace);
      const std::unique_ptr<Comm> ring = world.split(0);  // dies before the device
      Parameters parameters(gpt, *device, {ring->rank(), kRanks}, Parameters::Gradients::present);
      for (const Parameter& parameter : parameters.all()) {
        parameters.set(parameter, weights.at(parameter.name));
      }
      Gpt model(parameters);
      const std::vector<Piece>& pieces = layout.ranks[ring->rank()];
      for (int i = 0; i < kRepeats; ++i) {
        const ArenaScope scope(device->arena());
        const Mask mask{{0, 300, 301}, 0};
        Step step({*device, *ring, trace}, {Recompute::selective, 256, 256}, Pass::training, layout, mask,
                  gpt.rope_base, gpt.heads.head_dim, take_rows(window.tokens, pieces),
                  take_rows(window.labels, pieces));
        repeats[ring->rank()].add(gradients_of_step(model, parameters, step));
      }
    });
    for (const Repeats& of_rank : repeats) {
      EXPECT_EQ(of_rank.different, 0) << name_of(dtype);
      EXPECT_TRUE(std::ranges::any_of(of_rank.first, [](float x) { return x != 0; }));
    }
  }
}

}  // namespace
}  // namespace ringlet::test
