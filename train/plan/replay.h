#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "train/plan/tape.h"

namespace ringlet {

/// Time that a rank computed and stood still for messages, on the way through one hop of all layers. late: of what is
/// exposed, what would not be had the peers of each message asked for it when this rank did, with nothing else to carry; 0
/// where one rank is played for all.
struct HopTime {
  double compute_seconds = 0, exposed_seconds = 0, late_seconds = 0;
  int64_t sent_bytes = 0;
};

struct RankTime {
  double end_seconds = 0, compute_seconds = 0, exposed_seconds = 0, late_seconds = 0;
  double copy_seconds = 0;  // stood still for offloaded tensors, or copied them itself
  std::map<std::pair<std::string, int>, HopTime> hops;  // by phase and hop; -1: outside the ring
};

/// What is played: the tapes of a world's ranks in their order, or of one rank whose neighbours are taken to be as busy as
/// itself.
struct Replay {
  std::vector<const Tape*> tapes;
  int world_size = 1, ring_size = 1;
  Link link;
  double slowdown = 1;  // of compute: threads per core, where there are more threads than cores
  bool copies_take_cores = false;  // the processor copies offloaded tensors, and no core of it is free
};

/// Runs the tapes against a clock. A message starts when both sides have asked for it and the one before it in its
/// direction is through; a rank's wait ends when every message up to that one is. Collectives start when all ranks
/// have, and take (world - 1) latencies and their bytes' time. A rank's copies run one after the other. Throws Error
/// when ranks wait for each other for ever.
std::vector<RankTime> play(const Replay& replay);

/// Makes of the times of a step with one window, and of one with two, those of a step with `windows`.
void extend(RankTime& one, const RankTime& two, int64_t windows);

}  // namespace ringlet
