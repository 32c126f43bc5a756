#pragma once

#include "model/step.h"

namespace ringlet {

/// The keys and values (or their gradients) of one piece within a rank's flat [2 * kv_heads * rows * head_dim]:
/// [2, kv_heads, piece rows, head_dim].
Tensor kv_piece(const Tensor& kv, const HeadShape& shape, const Piece& piece);

/// Attention of this rank's queries over the keys and values of the whole ring, exact.
///   q: [heads, rows, head_dim]; kv: flat, piece by piece, this rank's own
///   output: [rows, heads * head_dim], lse: [heads, rows], set
/// While one block is computed the next one travels; two inboxes take turns. Pieces that no later visitor sees
/// stay where they are. The softmax state is f32 from the first hop to the last.
/// Source: arXiv:2310.01889. Keys and values make ring_size - 1 hops.
void ring_attention_forward(Step& step, const HeadShape& shape, const Tensor& q, const Tensor& kv,
                            const Tensor& output, const Tensor& lse);

/// Adds to dq: [heads, rows, head_dim]; sets dkv: flat, like kv.
/// Keys and values travel once more in the same direction, and the gradient of a block behind it. The layout decides
/// how:
/// - reproducible: the running sum of a piece starts with the owner's dkv, each visitor adds to it in turn, the last
///   one that sees the piece sends it straight home; while one piece travels another is computed. Output, LSE, dq and
///   dkv are bit-equal on any ring. Beside the inboxes of keys and values: two boxes for sums.
/// - otherwise the sum starts at the first visitor and comes home in R - 1 hops. Each visitor computes into
///   scratch and adds that to the sum that has arrived meanwhile: a whole step of compute hides a hop. Two boxes, one
///   scratch.
void ring_attention_backward(Step& step, const HeadShape& shape, const Tensor& q, const Tensor& kv,
                             const AttentionGradient& gradient, const Tensor& dq, const Tensor& dkv);

}  // namespace ringlet
