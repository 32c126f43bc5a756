#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/verify/compare_steps.h"

namespace ringlet {

/// What is swept: every model, mask and length, spread in every way.
struct VerifyMatrix {
  struct Model {
    std::string name;  // "MHA", "GQA", ...
    GptConfig gpt;
  };
  /// Ranks of a ring, rings beside each other, how gradients are sharded, and in how many pieces a block travels.
  struct World {
    int ring_size = 1, rings = 1;
    Parameters::Gradients gradients = Parameters::Gradients::present;
    int pieces = 0;  // as of make_layout
    bool operator==(const World&) const = default;
  };
  std::vector<Model> models;
  std::vector<VerifyMask> masks;
  std::vector<int64_t> lengths;
  std::vector<Layout> layouts;
  std::vector<World> worlds;
  std::vector<Recompute> policies;
  int64_t sliding_window = 19;  // of masks that have one
  uint64_t seed = 1;

  int64_t case_count() const;
};

/// Everything: MHA, GQA, MQA (with QK-norm and an untied head among them), the masks, lengths that are odd, prime,
/// shorter than the ring and not divisible by it, the three layouts, rings of 1, 2, 3, 4, 8 and two rings of two,
/// ZeRO-2 on a ring of four and two rings of two, a ring of two whose blocks travel in about six pieces, all policies.
/// In bf16 with head_dims that tensor cores serve, and one that they do not.
VerifyMatrix full_matrix(Dtype dtype = Dtype::f32);
/// Seconds instead of minutes: one length, one policy, fewer rings.
VerifyMatrix quick_matrix(Dtype dtype = Dtype::f32);

/// A small model with the grouping of heads, head_dim, norms and head of this one; vocabulary, width, layers and MLP
/// are cut down.
GptConfig scaled_down(const GptConfig& gpt);

/// What a case is compared with.
enum class VerifyAgainst : uint8_t {
  dense,     // the dense model in double
  one_rank,  // the same step on a ring of one, and random rows in double
  samples,   // random rows in double
};
const char* name_of(VerifyAgainst against);

struct VerifyCase {
  std::string model;
  VerifyMask mask = VerifyMask::causal;
  int64_t length = 0;
  RingSetup setup;
  VerifyAgainst against = VerifyAgainst::dense;
  std::vector<Deviation> deviations;  // in the order of the computation

  std::string name() const;  // "zigzag R=4 T=61 GQA documents selective"
  bool passed() const;
  const Deviation& worst() const;
  /// The first that failed: where to look. Null when all passed.
  const Deviation* first_failed() const;
};

/// "CASE: dK is off by 2e-1 of 1e-4 allowed, layer 1, ...": the first that failed.
std::string failure_line(const VerifyCase& failed);

/// Runs every case against the dense double-precision model and hands it to `done`.
void verify(const VerifyMatrix& matrix, const RingParts& parts,
            const std::function<void(const VerifyCase&)>& done);

/// The same by random rows that are recomputed in double where they are: at any length, O(T) a row.
void verify_samples(const VerifyMatrix& matrix, const RingParts& parts,
                    const std::function<void(const VerifyCase&)>& done);

}  // namespace ringlet
