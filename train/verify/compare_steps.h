#pragma once

#include <vector>

#include "train/verify/deviation.h"
#include "train/verify/ring_step.h"

namespace ringlet {

/// What f32 may differ from double: rounding is 6e-8 a step, sums have up to a few thousand terms and pass through a few
/// layers. Each is at least five times the worst seen over the full default matrix, and far below what a wrong
/// element, a bf16 rounding (4e-3) or a lost block does.
struct Tolerances {
  double loss = 1e-5;         // of one position, relative to max(1, loss)
  double mean_loss = 1e-6;    // relative
  double output = 1e-5;       // rows of attention output and LSE, relative to the typical row
  double row_gradient = 1e-4; // rows of dQ, dK, dV, input gradient, likewise
  double gradient = 1e-4;     // of a parameter, relative L2
  double cosine = 1e-7;       // 1 - cosine of a parameter's gradient
  double norm = 1e-5;         // of the whole gradient, relative
  double weights = 2e-4;      // change of a parameter in one step, relative L2
};
/// Of the model's dtype.
Tolerances tolerances_of(Dtype dtype);

/// The parameters whose gradients are off most: in L2, relative to the gradient (to a share of the whole model's where it
/// vanishes), and in direction.
struct GradientDeviations {
  Deviation error, direction;
};
GradientDeviations gradient_deviations(const GptConfig& gpt, const Values& actual, const Values& expected);

/// Compares a step on the ring with what it should be, in the order of the computation: the first one that
/// has not passed is where to look. Quantities that were not watched are left out.
std::vector<Deviation> deviations(const VerifyProblem& problem, const RingSetup& setup,
                                  const RingStep& actual, const StepValues& expected);

/// Of a step whose values nobody knows: its samples, and whether all ranks have one set of weights.
std::vector<Deviation> sampled_deviations(const RingStep& actual);

}  // namespace ringlet
