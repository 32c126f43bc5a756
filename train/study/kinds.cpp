#include "train/study/kinds.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/check.h"
#include "model/gpt_config.h"
#include "train/scale/study.h"

namespace ringlet {
namespace {

constexpr int64_t kShortestLength = 16;

Variants context_variants(const Config& base, StudySize size) {
  const std::vector<int64_t> lengths = context_lengths(base.run.seq_len, size);
  // Whole windows of every length: the shorter ones divide the longest.
  const int64_t longest = lengths.back(), asked = base.train.batch_windows * base.run.seq_len;
  const int64_t step_tokens = (asked + longest - 1) / longest * longest;
  const int64_t evaluated_tokens = base.train.eval_windows * base.run.seq_len;
  // A step of the longest windows may hold more tokens than the config's; the tokens in all stay
  // the same.
  const int64_t tokens = base.train.steps * base.train.batch_windows * base.run.seq_len;
  const int64_t steps = std::max<int64_t>(1, tokens / step_tokens);
  Variants variants;
  for (const int64_t length : lengths) {
    variants.list.push_back(
        {"T_" + length_text(double(length)),
         {fmt::format("run.seq_len={}", length),
          fmt::format("train.batch_windows={}", step_tokens / length),
          fmt::format("train.eval_windows={}", std::max<int64_t>(1, evaluated_tokens / length)),
          fmt::format("train.steps={}", steps),
          fmt::format("train.warmup_steps={}", std::min(base.train.warmup_steps, steps / 2))}});
  }
  return variants;
}

Variants mask_variants(const Config&, StudySize) {
  return {{{"causal", {"data.mask=causal"}}, {"document", {"data.mask=document"}}}};
}

Variants rope_variants(const Config& base, StudySize) {
  const int64_t window = base.data.window, length = base.run.seq_len;
  const double bound =
      auto_rope_base(base.model.head_dim, window > 0 ? std::min(window, length) : length);
  constexpr double kCommon = 1e4;  // what most models have
  Variants variants;
  for (const double factor : {0.01, 0.1, 1.0, 10.0}) {
    if (factor == 1.0) variants.reference = variants.list.size();
    variants.list.push_back({factor == 1.0 ? "bound" : fmt::format("bound_x{:g}", factor),
                             {fmt::format("model.rope_base={:.6g}", factor * bound)}});
  }
  const bool there = std::ranges::any_of(std::array{0.01, 0.1, 1.0, 10.0}, [&](double factor) {
    return std::abs(std::log(factor * bound / kCommon)) < 0.2;
  });
  if (!there) variants.list.push_back({"base_1e4", {"model.rope_base=1e4"}});
  return variants;
}

Variants ring_variants(const Config&, StudySize size) {
  Variants variants{{{"1_rank", {"run.ranks=1", "run.ring=0"}}}};
  for (int64_t ranks = 2; ranks <= (size == StudySize::large ? 8 : 4); ranks *= 2) {
    for (const char* layout : {"zigzag", "contiguous", "striped"}) {
      variants.list.push_back({fmt::format("{}_{}", ranks, layout),
                               {fmt::format("run.ranks={}", ranks), "run.ring=0",
                                fmt::format("run.layout={}", layout)}});
    }
  }
  return variants;
}

constexpr std::array<StudyKind, 4> kKinds{{
    {"context", "does a longer window help, at equal tokens?",
     "T an eighth, a quarter, half and all of run.seq_len (--large: twice and four times too), as "
     "many tokens in each step\n"
     "and in all, so shorter windows come in more of them. With rope_base = \"auto\" each T has "
     "its own base. All are scored\n"
     "on the same validation tokens, each cut into windows of its own T.",
     "ringlet study context configs/quickstart.toml -o studies/context", Measure::all, 2, context_variants},
    {"document-mask", "should a token see the documents before its own?",
     "data.mask causal and document, on a corpus of several documents; the same windows in the "
     "same order. Document masks\n"
     "send and compute less where windows hold several documents.",
     "ringlet study document-mask configs/quickstart.toml --set data.corpus=corpora/chapters.h5 "
     "\\\n"
     "      --set data.validation=corpora/chapters.validation.h5 -o studies/documents",
     Measure::all, 1, mask_variants},
    {"rope-base", "does the bound on the base of the rotary positions matter?",
     "The bound of arXiv:2405.14591 for the config's head_dim and T, a hundredth, a tenth and ten "
     "times of it, and 1e4. The\n"
     "bound is a heuristic: the study shows what it is worth here.",
     "ringlet study rope-base configs/quickstart.toml -o studies/rope", Measure::last_quarter, 2, rope_variants},
    {"ring", "what do ring size and layout cost, and do they change the losses?",
     "1, 2 and 4 ranks (--large: 8 too) in each layout at the same T, a tenth of train.steps. "
     "Ranks are threads that share\n"
     "the cores. Losses differ by the rounding of sums, which training then lets grow.",
     "ringlet study ring configs/quickstart.toml -o studies/ring", Measure::all, 10, ring_variants},
}};

}  // namespace

std::span<const StudyKind> study_kinds() { return kKinds; }

const StudyKind& study_named(std::string_view name) {
  std::string known;
  for (const StudyKind& kind : kKinds) {
    if (kind.name == name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(kind.name);
  }
  throw UsageError(fmt::format("there is no study '{}'", name),
                   "the studies are " + known + "; `ringlet study --help` explains them");
}

std::vector<int64_t> context_lengths(int64_t seq_len, StudySize size) {
  std::vector<int64_t> lengths;
  for (const int64_t divisor : {8, 4, 2, 1}) {
    const bool whole = seq_len % divisor == 0 && seq_len / divisor >= kShortestLength;
    if (whole || divisor == 1) lengths.push_back(seq_len / divisor);
  }
  if (size == StudySize::large) lengths.insert(lengths.end(), {2 * seq_len, 4 * seq_len});
  return lengths;
}

}  // namespace ringlet
