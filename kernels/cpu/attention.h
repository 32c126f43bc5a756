#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/cpu/thread_team.h"

namespace ringlet::cpu {

/// The attention operations of Backend; contracts in backend.h. Those with a team spread over its
/// threads, the others run on the calling thread. The caller has checked shapes (op_shapes.h).
///
/// Work is cut into tiles of 64 rows whose bounds are multiples of 64 in the global position (of 64
/// strides in a strided piece). Each query meets the tiles of keys from the diagonal downwards,
/// each key the tiles of queries upwards, heads of its group within a tile; a tile that a row does
/// not see leaves its bits alone. So the results of unstrided pieces do not depend on how the
/// sequence is cut, if it is cut at multiples of 64.
void attention_forward(ThreadTeam& team, const AttentionStep& step, const Tensor& q,
                       const Tensor& kv, const AttentionState& state);
void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                      const Tensor& lse);
void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                     const Tensor& delta);
/// progress: scratch of two counts or more for each KV head; with one for each 64 queries and one more all are shared
/// out at once.
void attention_backward(ThreadTeam& team, std::span<int64_t> progress, const AttentionStep& step,
                        const Tensor& q, const Tensor& kv, const AttentionGradient& gradient,
                        const Tensor& dq, const Tensor& dkv);

}  // namespace ringlet::cpu
