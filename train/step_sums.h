#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "train/evaluation.h"

namespace ringlet {

/// What all ranks must know of a step before they may update: summed over the world in one all-reduce.
struct StepSums {
  StepSums(int64_t length, int world_size) : loss_by_position(length), ranks(size_t(world_size)) {}
  PositionBins loss_by_position;
  double gradient_squares = 0, stop_requests = 0;
  struct Rank {
    double compute_ms = 0, exposed_ms = 0, data_wait_ms = 0, peak_bytes = 0, sent_bytes = 0;
  };
  std::vector<Rank> ranks;  // by world rank; a rank fills in its own

  /// Collective; waits for the device.
  void reduce(const ModelRank& rank) {
    std::vector<double> flat = loss_by_position.to_flat();
    const size_t bins = flat.size();
    flat.insert(flat.end(), {gradient_squares, stop_requests});
    for (const Rank& r : ranks) {
      flat.insert(flat.end(), {r.compute_ms, r.exposed_ms, r.data_wait_ms, r.peak_bytes, r.sent_bytes});
    }
    sum_over_world(rank, flat);
    loss_by_position = PositionBins::from_flat(rank.layout.length, std::span(flat).first(bins));
    gradient_squares = flat[bins];
    stop_requests = flat[bins + 1];
    for (size_t i = 0; i < ranks.size(); ++i) {
      const double* values = &flat[bins + 2 + 5 * i];
      ranks[i] = {values[0], values[1], values[2], values[3], values[4]};
    }
  }
  /// Tokens that do not count have no mean, and no gradient.
  bool finite() const {
    return std::isfinite(gradient_squares) &&
           (loss_by_position.count() == 0 || std::isfinite(loss_by_position.mean()));
  }
};

}  // namespace ringlet
