#include "train/verify/verify_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernels/check.h"

namespace ringlet {
namespace {

constexpr int kMostThreads = 16;             // of a verified world: more ranks than that are the same code
constexpr int64_t kShortWindow = 19;         // a sliding window that lengths of a hundred still feel
constexpr double kCautiousFlops = 1.5e10;    // per second and core, f32, the ring's waits included

VerifyMatrix::World own_world(const Config::Run& run) {
  const int ring = int(std::min<int64_t>(run.ring_size(), kMostThreads));
  const bool several = run.ranks > run.ring_size() && 2 * ring <= kMostThreads;
  return {ring, several ? 2 : 1};
}

std::vector<VerifyMask> masks_of(const Config::Data& data) {
  const bool documents = data.mask == MaskRule::document, window = data.window > 0;
  if (documents && window) return {VerifyMask::window, VerifyMask::documents_and_window};
  if (documents) return {VerifyMask::causal, VerifyMask::documents};
  return {window ? VerifyMask::window : VerifyMask::causal};
}

std::string model_name(const GptConfig& gpt) {
  return fmt::format("heads {}/{} of {}", gpt.heads.heads, gpt.heads.kv_heads, gpt.heads.head_dim);
}

/// Multiply-adds of a forward and backward pass, doubled: 6 for each weight of a matrix and token, 7 for each pair
/// of positions, channel and layer (causal, the backward recomputes the scores).
double step_flops(const GptConfig& gpt, int64_t length) {
  const double tokens = double(length);
  return 6 * double(parameter_count(gpt)) * tokens +
         7 * double(gpt.layers) * tokens * tokens * double(gpt.heads.q_width());
}

}  // namespace

void restrict_to(const Config& config, VerifyMatrix& matrix) {
  const GptConfig gpt = scaled_down(config.gpt(matrix.models.front().gpt.vocabulary));
  matrix.models = {{model_name(gpt), gpt}};
  matrix.masks = masks_of(config.data);
  if (config.data.window > 0) {
    matrix.sliding_window = std::min<int64_t>(config.data.window, kShortWindow);
  }
  const VerifyMatrix::World own = own_world(config.run);
  const auto same = [&](const VerifyMatrix::World& world) {
    return world.ring_size == own.ring_size && world.rings == own.rings;
  };
  if (std::ranges::none_of(matrix.worlds, same)) matrix.worlds.push_back(own);
}

VerifyMatrix start_matrix(const Config& config) {
  VerifyMatrix matrix = quick_matrix();
  matrix.worlds.clear();
  restrict_to(config, matrix);
  matrix.layouts = {config.run.layout};
  matrix.policies = {config.memory.recompute};
  matrix.lengths = {61, 193};
  return matrix;
}

std::string verify_start(const Config& config, const RingParts& parts) {
  const auto start = std::chrono::steady_clock::now();
  Deviation worst{"", "", 0, 1};
  int64_t cases = 0;
  verify(start_matrix(config), parts, [&](const VerifyCase& done) {
    if (!done.passed()) {
      throw Error("verify: the ring does not compute what one device computes: " + failure_line(done),
                  "`ringlet verify` tells more; run.verify = \"off\" trains all the same");
    }
    ++cases;
    if (worse(done.worst(), worst)) worst = done.worst();
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  const VerifyMatrix::World world = own_world(config.run);
  const std::string rings = world.rings > 1 ? fmt::format("{} rings of {}", world.rings, world.ring_size)
                                            : fmt::format("a ring of {}", world.ring_size);
  return fmt::format("verify: {} cases on {} equal one device in double; worst {} {:.1e} of {:.0e} allowed; {:.2f} s",
                     cases, rings, worst.quantity, worst.error, worst.tolerance, seconds.count());
}

OwnSizeCheck verify_own_size(const Config& config, int64_t vocabulary, const RingParts& parts,
                             double seconds_budget) {
  const GptConfig gpt = config.gpt(vocabulary);
  const VerifyMatrix::World world = own_world(config.run);
  const double cores = std::min(2.0, double(std::max(1u, std::thread::hardware_concurrency())));
  const double flops = double(world.rings) * step_flops(gpt, config.run.seq_len);
  const double ring_seconds = flops / (kCautiousFlops * cores), one_seconds = flops / kCautiousFlops;
  OwnSizeCheck check;
  check.estimated_seconds = ring_seconds + one_seconds;
  if (ring_seconds > seconds_budget) return check;
  const VerifyMask mask = masks_of(config.data).back();
  const VerifyProblem problem = make_problem(gpt, config.run.seq_len, world.rings, mask,
                                             config.data.window, uint64_t(config.run.seed));
  VerifyCase result{model_name(gpt), mask, config.run.seq_len,
                    {config.run.layout, world.ring_size, world.rings, config.step_settings()},
                    VerifyAgainst::samples, {}};
  const RingStep actual = ring_step(problem, result.setup, parts, Watch::samples);
  result.deviations = actual.samples;
  if (check.estimated_seconds <= seconds_budget) {
    const RingSetup alone{config.run.layout, 1, 1, config.step_settings()};
    const StepValues expected = ring_step(problem, alone, parts, Watch::samples).values;
    result.against = VerifyAgainst::one_rank;
    result.deviations = deviations(problem, result.setup, actual, expected);
  }
  check.result = std::move(result);
  return check;
}

}  // namespace ringlet
