#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/comm.h"
#include "train/devices.h"
#include "train/train_step.h"
#include "train/verify/deviation.h"
#include "train/verify/verify_problem.h"

namespace ringlet {

/// How a problem is spread over ranks.
struct RingSetup {
  Layout layout = Layout::zigzag;
  int ring_size = 1;
  int rings = 1;  // data-parallel: window i goes to ring i % rings
  StepSettings settings;
  Parameters::Gradients gradients = Parameters::Gradients::present;
  int pieces = 0;  // as of make_layout
  int ranks() const { return ring_size * rings; }
  SequenceLayout sequence_layout(int64_t length) const { return make_layout(layout, length, ring_size, pieces); }
};

/// What a step on the ring is made of. These are the real parts; a test that gives a wrong one must see it caught.
struct RingParts {
  std::function<std::unique_ptr<Backend>(int rank, int64_t arena_bytes, Trace& trace)> device;
  RankMemory* memory = nullptr;  // of the threads; must outlive the step; absent: the host's
  std::function<std::unique_ptr<Comm>(std::unique_ptr<Comm> ring)> ring;
  std::function<std::unique_ptr<Comm>(std::unique_ptr<Comm> world)> world;
  std::function<SequenceLayout(const RingSetup&, int64_t length)> layout;
  /// The rows of a window that `pieces` stand for.
  std::function<Batch(const VerifyWindow& window, std::span<const Piece> pieces)> batch;
  /// Rules of this rank, which holds these rows.
  std::function<StepRules(const Batch& batch)> rules;
};
RingParts real_parts(int threads_per_rank = 1);
/// The same on these devices, which must outlive what is given.
RingParts real_parts(const Devices& devices);

/// How much is looked at.
enum class Watch : uint8_t {
  everything,  // also what each attention layer computes, an evaluation pass, leak probes
  samples,     // instead of the layers: rows of them, recomputed where they are (train/verify/spot_check.h)
};

struct RingStep {
  StepValues values;
  std::vector<Deviation> samples;    // of all rings; empty where they are not watched
  std::vector<std::string> leaks;    // what was felt where it must not be, one line each
  std::vector<std::string> strays;   // parameters whose weights differ between ranks after the step, one line each
};

/// Zeros for every element of every parameter.
Values room_for_parameters(const GptConfig& gpt);
/// Writes what this rank owns of them into `whole`, which ranks may share. Waits for the device.
void put_shards(const ShardedAdamW& optimizer, Backend& device, Tensor ShardedAdamW::Segment::*shard, Values& whole);

/// One optimizer step of the problem on threads, through the trainer's own step, model, ring and optimizer.
RingStep ring_step(const VerifyProblem& problem, const RingSetup& setup, const RingParts& parts,
                   Watch watch);

}  // namespace ringlet
