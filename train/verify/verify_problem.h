#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "data/window_plan.h"
#include "kernels/backend.h"
#include "model/gpt_config.h"
#include "model/sequence_layout.h"
#include "train/config.h"
#include "train/verify/reference_gpt.h"

namespace ringlet {

/// Parameters of a model that is not fresh: its losses differ well from log(vocabulary), its attention is not flat,
/// its norms are not 1. A pure function of the seed.
std::map<std::string, std::vector<float>> random_parameters(const GptConfig& config, uint64_t seed);

Values widened(const std::map<std::string, std::vector<float>>& parameters);

/// One window in global order, its labels made before anything is split.
struct VerifyWindow {
  std::vector<int32_t> tokens, labels;  // [T]; in padding 0 and -1
  Window window;
};

/// What is to be computed, however it is spread over ranks: one optimizer step of one model.
struct VerifyProblem {
  GptConfig gpt;
  std::map<std::string, std::vector<float>> weights;
  std::vector<VerifyWindow> windows;  // all of one length
  MaskRule rule = MaskRule::document;
  int64_t sliding_window = 0;         // 0: all of the document
  AdamW optimizer{};
  double clip_norm = 0;

  int64_t length() const { return int64_t(windows.front().tokens.size()); }
  int64_t scored_tokens() const;
  Mask mask(const VerifyWindow& window) const;
};

/// What a query may see. Packed windows have documents, and padding, that the mask does not know (data.mask = "causal").
enum class VerifyMask : uint8_t { causal, documents, window, documents_and_window, packed, packed_and_window };
const char* name_of(VerifyMask mask);
bool has_documents(VerifyMask mask);  // in its windows
bool has_window(VerifyMask mask);
MaskRule rule_of(VerifyMask mask);

/// A problem of random tokens. Documents begin anywhere, some are one token long, the last window ends in padding.
/// sliding_window: used where the mask has one. The optimizer's settings make the next weights sensitive to the size of the
/// gradient, to clipping and to decay, but not to rounding.
VerifyProblem make_problem(const GptConfig& gpt, int64_t length, int64_t window_count,
                           VerifyMask mask, int64_t sliding_window, uint64_t seed);

/// What the forward and backward pass leave of one window, position by position.
struct WindowValues {
  std::vector<double> losses;       // [T]; 0 in padding
  std::vector<double> eval_losses;  // [T]: of an evaluation pass
  std::vector<LayerValues> layers;
  std::vector<double> d_input;  // [T, width]: gradient of the embedding's output
};

/// All that one optimizer step computes, in global order: by the reference, or gathered from the ranks.
struct StepValues {
  std::vector<WindowValues> windows;
  double train_loss = 0, eval_loss = 0, gradient_norm = 0;  // nats per scored token; norm before clipping
  Values gradients, next_weights;
};

/// The step in double on one device, dense. Cost: layers * heads * T^2 doubles of memory for each window.
StepValues reference_step(const VerifyProblem& problem);

}  // namespace ringlet
