// Whole training steps on the CPU: tokens a second, GFLOP/s and share of the FMA peak of the
// moment, as in training: forward, backward, sums over the world, clipping, AdamW. The model is
// that of tests/peers/train_torch.py.
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include "kernels/comm/threads.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/random.h"
#include "tests/bench/measure.h"
#include "train/train_step.h"

namespace ringlet::bench {
namespace {

struct Setup {
  int64_t length = 2048;
  int ranks = 1, threads_per_rank = 2;
  Layout layout = Layout::zigzag;
  Recompute recompute = Recompute::none;
};

/// 5.24 M parameters in matrices, the embedding (which is the head) among them.
GptConfig model() {
  GptConfig gpt;
  gpt.vocabulary = 8192;
  gpt.layers = 4;
  gpt.width = 256;
  gpt.heads = {8, 8, 32};
  gpt.mlp_width = 683;
  return gpt;
}

/// 6 * N * T + 7 * L * T^2 * d: each product forward and twice backward; attention 2 forward, 5
/// backward, causal half.
double executed_flops(const GptConfig& gpt, int64_t length) {
  const double tokens = double(length), width = double(gpt.heads.q_width()),
               layers = double(gpt.layers);
  const double matrices =
      layers * double(gpt.width) *
          double(gpt.heads.qkv_width() + gpt.heads.q_width() + 3 * gpt.mlp_width) +
      double(gpt.vocabulary * gpt.width);
  return 6 * matrices * tokens + 7 * layers * tokens * tokens * width;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, const char* stream) {
  const CounterRandom random(1, hash_name(stream));
  std::vector<int32_t> tokens(size_t(count), 0);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = int32_t(random.bits(i) % uint64_t(vocabulary));
  return tokens;
}

/// One rank, its model and its optimizer.
class Rank {
 public:
  Rank(const Setup& setup, const SequenceLayout& layout, RankContext context, Comm& world)
      : parameters_(model(), context.device, {world.rank(), world.size()}, Parameters::Gradients::present),
        gpt_(parameters_),
        settings_{setup.recompute, 512, 1024},
        rank_{context, world, layout, settings_, gpt_},
        optimizer_(parameters_, world),
        step_(rank_, parameters_, optimizer_, MaskRule::document, 0) {
    parameters_.initialise(1);
    const auto rows = layout.rows(context.ring.rank());
    batch_.window.token_count = setup.length;
    batch_.window.document_starts = {0};
    batch_.tokens = random_tokens(rows, model().vocabulary, "tokens");
    batch_.labels = random_tokens(rows, model().vocabulary, "labels");
  }

  void step() {
    double squares =
        step_.accumulate({1, 1, batch_.window.token_count, [this] { return &batch_; }},
                         rank_.context.device, [](std::span<const float>, const Batch&) {});
    sum_over_world(rank_, {&squares, 1});
    step_.update(squares, 1.0, {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, ++updates_});
  }

 private:
  Parameters parameters_;
  Gpt gpt_;
  const StepSettings settings_;
  const ModelRank rank_;
  ShardedAdamW optimizer_;
  TrainStep step_;
  Batch batch_;
  int64_t updates_ = 0;
};

void training_step(benchmark::State& state, const Setup& setup) {
  const SequenceLayout layout = make_layout(setup.layout, setup.length, setup.ranks);
  run_ranks({setup.ranks, std::chrono::minutes(10)}, [&](Comm& world, Trace& trace) {
    const std::unique_ptr<Backend> device =
        make_cpu_backend(int64_t{1} << 36, trace, setup.threads_per_rank);
    Rank rank(setup, layout, {*device, world, trace}, world);
    // Rank 0 says when there is one step more; the others follow.
    const Tensor more = device->arena().allocate("bench", Dtype::f32, {1, 1, 1, 1});
    const auto go_on = [&](bool yes) {
      device->fill(yes ? 1 : 0, more);
      device->wait(world.all_reduce(more, device->record()));
      return more.as<float>()[0] > 0;
    };
    if (world.rank() == 0) {
      measure(state, setup.ranks * setup.threads_per_rank, executed_flops(model(), setup.length),
              [&] {
                go_on(true);
                rank.step();
              });
      go_on(false);
    } else {
      while (go_on(false)) rank.step();
    }
  });
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  // Of the median step, as the rate is: PyTorch's beside it is one too.
  state.counters["tokens/s"] = state.counters["GFLOP/s"] * 1e9 * double(setup.length) / executed_flops(model(), setup.length);
  state.counters["RSS_GiB"] =
      double(used.ru_maxrss) / (1 << 20);  // the largest so far of this process
}

void register_all() {
  const auto add = [](const char* name, const Setup& setup) {
    benchmark::RegisterBenchmark((std::string(name) + "/T:" + std::to_string(setup.length)).c_str(),
                                 training_step, setup)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  for (const int64_t length : {2048, 8192, 32768}) {
    const Recompute policy = length > 8192 ? Recompute::selective : Recompute::none;
    add("one_rank_of_two_threads", {length, 1, 2, Layout::zigzag, policy});
    add("two_ranks_zigzag", {length, 2, 1, Layout::zigzag, policy});
  }
  add("two_ranks_contiguous", {8192, 2, 1, Layout::contiguous, Recompute::none});
}

}  // namespace
}  // namespace ringlet::bench

int main(int argc, char** argv) {
  ringlet::bench::register_all();
  return ringlet::bench::run_benchmarks(argc, argv);
}
