#pragma once

#include <algorithm>
#include <functional>
#include <memory_resource>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/comm.h"
#include "kernels/offload.h"
#include "kernels/trace.h"
#include "model/ring_schedule.h"
#include "model/sequence_layout.h"

namespace ringlet {

/// What the forward pass keeps for the backward pass. Block inputs are always kept, norms always recomputed.
/// none: all else is kept too; selective: the ring's output and LSE; full: nothing.
/// automatic: whichever a budget allows; whoever makes a Step has chosen by then (train/plan/plan.h).
enum class Recompute : uint8_t { none, selective, full, automatic };

const char* name_of(Recompute policy);

enum class Pass : uint8_t { training, evaluation };

/// How the model is run, the same for every step.
struct StepSettings {
  Recompute recompute = Recompute::selective;
  int64_t head_chunk = 512;  // tokens whose logits exist at a time
  int64_t mlp_chunk = 1024;  // tokens whose MLP activations exist at a time (unless kept)
};

/// The rank that runs: its device, its ring, where it says what it is doing.
struct RankContext {
  Backend& device;
  Comm& ring;
  Trace& trace;
  Offload* offload = nullptr;  // where block inputs wait for the backward pass; absent: in the arena
  std::pmr::memory_resource* host_memory = std::pmr::get_default_resource();  // of lists that end with the step
};

/// One window of tokens as this rank sees it, and how to run it: what every layer gets to know.
/// Tensors live in the arena, region "inputs", until the caller rewinds.
class Step {
 public:
  /// tokens, labels: this rank's rows, piece by piece; labels may be -1 (not scored).
  /// `layout` and `mask` must outlive the step.
  Step(RankContext context, const StepSettings& settings, Pass pass, const SequenceLayout& layout,
       std::reference_wrapper<const Mask> mask, double rope_base, int64_t head_dim, std::span<const int32_t> tokens,
       std::span<const int32_t> labels);

  Backend& device;
  Comm& ring;
  Trace& trace;
  Offload* const offload;
  std::pmr::memory_resource* const host_memory;
  const StepSettings settings;
  const Pass pass;
  const SequenceLayout& layout;
  const Mask& mask;
  const RingSchedule schedule;
  Tensor tokens, labels;  // i32 [rows]
  Tensor first_visible;   // i64 [rows]
  Tensor rotary;          // f32 [rows, head_dim]
  Tensor losses;          // f32 [rows]: written by the loss head

  Arena& arena() const { return device.arena(); }
  int64_t rows() const { return tokens.rows(); }
  const std::vector<Piece>& pieces() const { return layout.ranks[ring.rank()]; }

  bool keeps_everything() const {
    return pass == Pass::training && settings.recompute == Recompute::none;
  }
  bool keeps_attention() const {
    return pass == Pass::training && settings.recompute != Recompute::full;
  }
};

/// Calls body(first row, row count) for chunks of at most `chunk` rows, in order.
template <class Body>
void for_each_chunk(int64_t rows, int64_t chunk, const Body& body) {
  for (int64_t first = 0; first < rows; first += chunk) body(first, std::min(chunk, rows - first));
}

}  // namespace ringlet
