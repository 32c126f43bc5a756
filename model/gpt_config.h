#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace ringlet {

/// The shape of a GPT: token embedding, `layers` pre-norm blocks (RMSNorm, rotary attention with grouped KV heads,
/// optional QK-norm, SwiGLU MLP), final norm, tied or untied head.
struct GptConfig {
  int64_t vocabulary = 257;
  int64_t layers = 4;
  int64_t width = 128;
  HeadShape heads{4, 4, 32};
  int64_t mlp_width = 384;
  bool tied_head = true;
  bool qk_norm = false;
  float norm_epsilon = 1e-6f;
  double rope_base = 10'000;
  Dtype dtype = Dtype::f32;  // of activations and of the weights that meet them: f32 or bf16

  /// Keys and values of a token, as a hop carries them forward; their gradients are f32.
  int64_t kv_token_bytes() const { return 2 * heads.kv_heads * heads.head_dim * element_bytes(dtype); }
  int64_t kv_gradient_token_bytes() const { return 2 * heads.kv_heads * heads.head_dim * element_bytes(Dtype::f32); }

  /// Throws UsageError that names the value that cannot be.
  void validate() const;
};

/// Name and shape of a parameter; shape is [out, in] for matrices, [n] for norms.
struct ParameterShape {
  std::string name;
  std::vector<int64_t> shape;
  int64_t size() const;
};

/// All parameters of a model in their fixed order. A layer's parameters stand together:
///   embedding.weight [vocabulary, width]
///   blocks.I.attention_norm.weight [width]
///   blocks.I.attention.qkv.weight [qkv_width, width] (rows: all query heads, key heads, value heads)
///   blocks.I.attention.q_norm.weight, ...k_norm.weight [head_dim] (with QK-norm)
///   blocks.I.attention.output.weight [width, q_width]
///   blocks.I.mlp_norm.weight [width]
///   blocks.I.mlp.gate_up.weight [2 * mlp_width, width] (gate rows, then up rows)
///   blocks.I.mlp.down.weight [width, mlp_width]
///   final_norm.weight [width]
///   head.weight [vocabulary, width] (untied)
std::vector<ParameterShape> parameter_shapes(const GptConfig& config);

int64_t parameter_count(const GptConfig& config);

/// The smallest rotary base, on a logarithmic grid of step 0.02, for which sum_i cos(m * base^(-2i / head_dim)) >= 0
/// for all distances m < context; at least 10,000.
/// Source: arXiv:2405.14591 (the bound), recomputed for this head_dim. A heuristic, not a wall.
double auto_rope_base(int64_t head_dim, int64_t context);

}  // namespace ringlet
