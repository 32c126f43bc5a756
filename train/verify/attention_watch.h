#pragma once

#include <span>
#include <vector>

#include "kernels/forwarding_backend.h"
#include "kernels/trace.h"
#include "train/verify/verify_problem.h"

namespace ringlet {

/// A device that takes down what the attention layers of a rank compute, and the gradient of the model's input. It sees
/// the same calls as the device that it stands in front of and changes nothing.
class AttentionWatch : public ForwardingBackend {
 public:
  /// The layer is the one that `trace` says the rank is in. All must outlive this.
  AttentionWatch(Backend& device, const Trace& trace, const GptConfig& gpt,
                 std::span<const Piece> pieces);

  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override;
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override;
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override;

  /// Writes what this rank's last window left into `values`, sized for all positions: position by position, those of
  /// `pieces` only.
  void put(WindowValues& values) const;

 private:
  struct Layer {
    std::vector<float> output, lse, dq, dkv;  // laid out as in the backend
  };
  Layer& layer();

  const Trace& trace_;
  const HeadShape heads_;
  const int64_t width_;
  const std::vector<Piece> pieces_;
  std::vector<Layer> layers_;
  std::vector<float> d_input_;
};

/// Room for what put() writes.
void resize_for(const GptConfig& gpt, int64_t length, WindowValues& values);

}  // namespace ringlet
