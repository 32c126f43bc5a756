#include "train/verify/verify_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernels/check.h"
#include "train/plan/memory_choice.h"

namespace ringlet {
namespace {

constexpr int kMostThreads = 16;             // of a verified world: more ranks than that are the same code
constexpr int64_t kShortWindow = 19;         // a sliding window that lengths of a hundred still feel
// For each weight: on a rank itself, its gradient, its copy for the comparison; once the shards of the optimizer, the
// problem, and two steps' gradients and next weights in double and f32.
constexpr double kBytesOfRank = 12, kBytesOfComparison = 64;
constexpr double kCautiousFlops = 1.5e10;    // per second and core, f32, the ring's waits included

VerifyMatrix::World own_world(const Config& config) {
  const Config::Run& run = config.run;
  const int rings = run.ranks > run.ring_size() ? 2 : 1;
  return {int(std::min<int64_t>(run.ring_size(), kMostThreads / rings)), rings, config.gradients(),
          run.ring_size() > 1 ? int(run.pieces) : 0};
}

/// "a ring of 4", and which world it stands for where that is another.
std::string describe_world(const Config& config) {
  const Config::Run& run = config.run;
  const auto describe = [](int64_t rings, int64_t ring_size) {
    return rings > 1 ? fmt::format("{} rings of {}", rings, ring_size) : fmt::format("a ring of {}", ring_size);
  };
  const VerifyMatrix::World verified = own_world(config);
  const int64_t rings = run.ranks / run.ring_size();
  const std::string line = describe(verified.rings, verified.ring_size);
  const bool same = verified.rings == rings && verified.ring_size == run.ring_size();
  return same ? line : fmt::format("{} (standing for {})", line, describe(rings, run.ring_size()));
}

std::vector<VerifyMask> masks_of(const Config::Data& data) {
  const bool documents = data.mask == MaskRule::document, window = data.window > 0;
  if (documents && window) return {VerifyMask::window, VerifyMask::documents_and_window};
  if (documents) return {VerifyMask::causal, VerifyMask::documents};
  if (window) return {VerifyMask::window, VerifyMask::packed_and_window};
  return {VerifyMask::causal, VerifyMask::packed};
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
  const VerifyMatrix::World own = own_world(config);
  if (std::ranges::find(matrix.worlds, own) == matrix.worlds.end()) matrix.worlds.push_back(own);
}

VerifyMatrix start_matrix(const Config& config) {
  VerifyMatrix matrix = quick_matrix();
  matrix.worlds.clear();
  restrict_to(config, matrix);
  matrix.layouts = {config.run.layout};
  if (config.memory.recompute != Recompute::automatic) matrix.policies = {config.memory.recompute};
  matrix.lengths = {61, 193};
  // Contiguous pieces are whole tiles of 64: three for each rank.
  if (const VerifyMatrix::World own = own_world(config); own.pieces > 2) {
    matrix.lengths.push_back(128 * std::min(own.ring_size, 8) + 1);
  }
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
  return fmt::format("verify: {} cases on {} equal one device in double; worst {} {:.1e} of {:.0e} allowed; {:.2f} s",
                     cases, describe_world(config), worst.quantity, worst.error, worst.tolerance, seconds.count());
}

OwnSizeCheck verify_own_size(const Config& config, int64_t vocabulary, const RingParts& parts,
                             OwnSizeBudget budget) {
  const GptConfig gpt = config.gpt(vocabulary);
  VerifyMatrix::World world = own_world(config);
  const double cores = std::min(2.0, double(std::max(1u, std::thread::hardware_concurrency())));
  const double flops = double(world.rings) * step_flops(gpt, config.run.seq_len);
  const double ring_seconds = flops / (kCautiousFlops * cores), one_seconds = flops / kCautiousFlops;
  OwnSizeCheck check;
  check.estimated_seconds = ring_seconds + one_seconds;
  const int ranks = world.ring_size * world.rings;
  check.estimated_bytes = double(parameter_count(gpt)) * (kBytesOfRank * ranks + kBytesOfComparison);
  if (ring_seconds > budget.seconds || check.estimated_bytes > budget.bytes) return check;
  const Config resolved = resolved_recompute(config, gpt);
  const StepSettings settings = resolved.step_settings();
  world.gradients = resolved.gradients();
  const VerifyMask mask = masks_of(config.data).back();
  const VerifyProblem problem = make_problem(gpt, config.run.seq_len, world.rings, mask,
                                             config.data.window, uint64_t(config.run.seed));
  VerifyCase result{model_name(gpt), mask, config.run.seq_len,
                    {config.run.layout, world.ring_size, world.rings, settings, world.gradients, world.pieces},
                    VerifyAgainst::samples, {}};
  const RingStep actual = ring_step(problem, result.setup, parts, Watch::samples);
  result.deviations = sampled_deviations(actual);
  if (check.estimated_seconds <= budget.seconds) {
    const RingSetup alone{config.run.layout, 1, 1, settings};
    const StepValues expected = ring_step(problem, alone, parts, Watch::samples).values;
    result.against = VerifyAgainst::one_rank;
    result.deviations = deviations(problem, result.setup, actual, expected);
  }
  check.result = std::move(result);
  return check;
}

}  // namespace ringlet
