#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "kernels/comm.h"
#include "kernels/forwarding_backend.h"
#include "kernels/trace.h"
#include "model/gpt_config.h"
#include "model/sequence_layout.h"
#include "train/verify/deviation.h"

namespace ringlet {

/// Checks the ring attention of a real training step at any length: a device that stands in front of the rank's own and
/// recomputes, layer by layer, random rows in double. For a (layer, head, position) the output, LSE and dQ, by streaming
/// the keys and values of every rank past the query; for a (layer, KV head, position) dK and dV, by
/// streaming every rank's queries past the key, with the ring's own LSE and output of these. What travels for that goes
/// through sums over the ring, not through the ring's hops. q and keys are taken as they are; of the table that rotated
/// them, random rows are compared with the angles of the positions that they should stand for.
/// Collective: every rank of the ring has one, over the same step. Cost: O(T) for each row; on the host one layer's q, keys,
/// values, output and their gradients at a time.
class SpotCheck : public ForwardingBackend {
 public:
  struct Settings {
    int64_t rows = 64;  // queries, and as many keys, over all layers of a window (at least one a layer)
    uint64_t seed = 1;
  };

  /// All must outlive this. `layout`: what the ranks of the ring should hold.
  SpotCheck(Backend& device, Comm& ring, const Trace& trace, const GptConfig& gpt,
            const SequenceLayout& layout, Settings settings);

  /// A window begins whose queries may see this.
  void begin_window(const Mask& mask);

  /// The worst of each quantity so far; the same on all ranks of the ring.
  const std::vector<Deviation>& deviations() const { return worst_; }
  int64_t rows_checked() const { return rows_checked_; }
  /// Of all of them. A window has to have been checked.
  const Deviation& worst() const;
  /// Time that the checks took on this rank.
  std::chrono::nanoseconds cost() const { return cost_; }

  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override;
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override;
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override;
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override;
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override;

 private:
  /// The tensors of a layer between its forward and its backward pass.
  struct Layer {
    Tensor q, kv, output, lse;
    std::vector<float> d_output;
  };
  void check(int layer, const Layer& tensors, const Tensor& dq, const Tensor& dkv);
  void sum_over_ring(std::span<double> values);
  void keep(const Deviation& found);

  Comm& ring_;
  const Trace& trace_;
  const GptConfig gpt_;
  const SequenceLayout& layout_;
  const Settings settings_;
  Mask mask_;
  int64_t windows_ = 0, rows_checked_ = 0;
  std::chrono::nanoseconds cost_{0};
  std::map<int, Layer> layers_;
  std::vector<Deviation> worst_;
};

}  // namespace ringlet
