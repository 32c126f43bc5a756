#include "train/verify/verify.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>

namespace ringlet {
namespace {

GptConfig small_model(HeadShape heads) {
  GptConfig gpt;
  gpt.vocabulary = 31;
  gpt.layers = 2;
  gpt.width = 24;
  gpt.heads = heads;
  gpt.mlp_width = 40;
  gpt.rope_base = 500;
  return gpt;
}

std::vector<VerifyMatrix::Model> all_models(Dtype dtype) {
  const bool rounds = dtype == Dtype::bf16;
  GptConfig equal = small_model({3, 3, rounds ? 64 : 8});
  GptConfig grouped = small_model({4, 2, rounds ? 128 : 8});
  GptConfig single = small_model({4, 1, 8});
  grouped.qk_norm = true;
  single.tied_head = false;
  for (GptConfig* gpt : {&equal, &grouped, &single}) gpt->dtype = dtype;
  return {{"MHA", equal}, {"GQA", grouped}, {"MQA", single}};
}

/// Chunks smaller than the rows of most ranks, so that cutting is part of what is verified.
StepSettings small_chunks(Recompute policy) { return {policy, 16, 24}; }

/// body(problem, its case without a setup, rings): once for one ring and, where the matrix has such worlds, once for
/// several, which get one window more than there are rings: uneven shares.
template <class Body>
void for_each_problem(const VerifyMatrix& matrix, const Body& body) {
  std::set<int> ring_counts;
  for (const VerifyMatrix::World& world : matrix.worlds) ring_counts.insert(world.rings);
  for (const VerifyMatrix::Model& model : matrix.models) {
    for (const VerifyMask mask : matrix.masks) {
      for (const int64_t length : matrix.lengths) {
        for (const int rings : ring_counts) {
          body(make_problem(model.gpt, length, rings > 1 ? rings + 1 : 1, mask, matrix.sliding_window,
                            matrix.seed),
               VerifyCase{model.name, mask, length, {}, VerifyAgainst::dense, {}}, rings);
        }
      }
    }
  }
}

/// body(case) for every way to spread a problem over so many rings. An Error on the way names the case.
template <class Body>
void for_each_setup(const VerifyMatrix& matrix, const VerifyCase& described, int rings,
                    const Body& body) {
  for (const Layout layout : matrix.layouts) {
    for (const VerifyMatrix::World& world : matrix.worlds) {
      if (world.rings != rings) continue;
      for (const Recompute policy : matrix.policies) {
        VerifyCase one = described;
        one.setup = {layout, world.ring_size, world.rings, small_chunks(policy), world.gradients, world.pieces};
        try {
          body(one);
        } catch (const Error& error) {
          throw Error("verify, " + one.name() + ": " + error.what(), error.advice);
        }
      }
    }
  }
}

}  // namespace

int64_t VerifyMatrix::case_count() const {
  return std::ssize(models) * std::ssize(masks) * std::ssize(lengths) * std::ssize(layouts) *
         std::ssize(worlds) * std::ssize(policies);
}

VerifyMatrix full_matrix(Dtype dtype) {
  VerifyMatrix matrix;
  matrix.models = all_models(dtype);
  matrix.masks = {VerifyMask::causal, VerifyMask::documents, VerifyMask::window,
                  VerifyMask::documents_and_window, VerifyMask::packed};
  matrix.lengths = {5, 61, 64, 129, 257};
  matrix.layouts = {Layout::contiguous, Layout::zigzag, Layout::striped};
  constexpr auto kPresent = Parameters::Gradients::present, kInTurns = Parameters::Gradients::in_turns;
  matrix.worlds = {{1, 1}, {2, 1}, {3, 1}, {4, 1}, {8, 1}, {2, 2}, {4, 1, kInTurns}, {2, 2, kInTurns}, {2, 1, kPresent, 6}};
  matrix.policies = {Recompute::none, Recompute::selective, Recompute::full};
  return matrix;
}

VerifyMatrix quick_matrix(Dtype dtype) {
  VerifyMatrix matrix = full_matrix(dtype);
  matrix.lengths = {193};  // rows for each of four contiguous ranks, whose bounds are multiples of 64
  matrix.worlds = {{2, 1}, {4, 1}, {2, 2}};
  matrix.policies = {Recompute::selective};
  return matrix;
}

GptConfig scaled_down(const GptConfig& gpt) {
  GptConfig small = gpt;
  const int64_t group = gpt.heads.heads / gpt.heads.kv_heads;
  small.vocabulary = std::min<int64_t>(gpt.vocabulary, 61);
  small.layers = std::min<int64_t>(gpt.layers, 2);
  small.heads.kv_heads = std::min<int64_t>(gpt.heads.kv_heads, 2);
  small.heads.heads = small.heads.kv_heads * group;
  small.width = std::min<int64_t>(gpt.width, 48);
  small.mlp_width = std::min<int64_t>(gpt.mlp_width, 64);
  return small;
}

const char* name_of(VerifyAgainst against) {
  switch (against) {
    case VerifyAgainst::dense: return "dense";
    case VerifyAgainst::one_rank: return "one rank";
    case VerifyAgainst::samples: return "samples";
  }
  return "?";
}

std::string VerifyCase::name() const {
  const std::string rings = setup.rings > 1 ? fmt::format("{}x", setup.rings) : "";
  const char* const zero = setup.gradients == Parameters::Gradients::in_turns ? " ZeRO-2" : "";
  const std::string pieces = setup.pieces > 0 ? fmt::format(" in {} pieces", setup.pieces) : "";
  return fmt::format("{} R={}{} T={} {} {} {}{}{}", name_of(setup.layout), rings, setup.ring_size, length,
                     model, name_of(mask), name_of(setup.settings.recompute), zero, pieces);
}

bool VerifyCase::passed() const { return std::ranges::all_of(deviations, &Deviation::passed); }

const Deviation& VerifyCase::worst() const {
  const Deviation* worst = &deviations.front();
  for (const Deviation& deviation : deviations) {
    if (worse(deviation, *worst)) worst = &deviation;
  }
  return *worst;
}

const Deviation* VerifyCase::first_failed() const {
  const auto found = std::ranges::find_if(deviations, [](const Deviation& d) { return !d.passed(); });
  return found == deviations.end() ? nullptr : &*found;
}

std::string failure_line(const VerifyCase& failed) {
  const Deviation& first = *failed.first_failed();
  return fmt::format("{}: {} is off by {:.1e} of {:.0e} allowed{}{}", failed.name(), first.quantity,
                     first.error, first.tolerance, first.where.empty() ? "" : ", ", first.where);
}

void verify(const VerifyMatrix& matrix, const RingParts& parts,
            const std::function<void(const VerifyCase&)>& done) {
  for_each_problem(matrix, [&](const VerifyProblem& problem, const VerifyCase& described, int rings) {
    const StepValues expected = reference_step(problem);
    for_each_setup(matrix, described, rings, [&](VerifyCase one) {
      one.deviations = deviations(problem, one.setup,
                                  ring_step(problem, one.setup, parts, Watch::everything), expected);
      done(one);
    });
  });
}

void verify_samples(const VerifyMatrix& matrix, const RingParts& parts,
                    const std::function<void(const VerifyCase&)>& done) {
  for_each_problem(matrix, [&](const VerifyProblem& problem, const VerifyCase& described, int rings) {
    for_each_setup(matrix, described, rings, [&](VerifyCase one) {
      one.against = VerifyAgainst::samples;
      one.deviations = sampled_deviations(ring_step(problem, one.setup, parts, Watch::samples));
      done(one);
    });
  });
}

}  // namespace ringlet
