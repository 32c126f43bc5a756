#include "train/plan/paper.h"

#include <fmt/format.h>

#include <array>

#include "train/console.h"

namespace ringlet {
namespace {

struct Host {
  const char* name;
  double flops, bytes_per_second;
  double paper_block, paper_sequence;  // in thousands of tokens, as printed there
};
constexpr std::array kHosts{
    Host{"A100, NVLink", 312e12, 300e9, 1.0, 6.2}, Host{"A100, InfiniBand", 312e12, 12.5e9, 24.5, 149.5},
    Host{"TPU v3", 123e12, 112e9, 1.1, 6.6},       Host{"TPU v4", 275e12, 268e9, 1.0, 6.2},
    Host{"TPU v5e", 196e12, 186e9, 1.1, 6.3},
};

std::string thousands(double tokens) { return fmt::format("{:.1f}", tokens / 1e3); }

}  // namespace

std::string paper_text() {
  // c >= bytes / flops * F / B, both per token squared or token, and unit of width: forward, every pair: 4 and 4.
  const auto least = [](const Host& host, double flops, double bytes) {
    return bytes / flops * host.flops / host.bytes_per_second;
  };
  std::vector<std::vector<std::string>> blocks{{"tokens a device, thousands", "block c", "paper", "sequence 6 c", "paper",
                                                "zigzag", "4:1 KV heads", "backward", "4:1 KV heads", "all f32",
                                                "backward"}};
  for (const Host& host : kHosts) {
    const double block = least(host, 4, 4), zigzag = least(host, 2, 4), backward = least(host, 5, 12);
    blocks.push_back({host.name, thousands(block), fmt::format("{:.1f}", host.paper_block), thousands(6 * block),
                      fmt::format("{:.1f}", host.paper_sequence), thousands(zigzag), thousands(zigzag / 4),
                      thousands(backward), thousands(backward / 4), thousands(least(host, 2, 8)),
                      thousands(least(host, 5, 16))});
  }
  std::string text = format_table(blocks);
  text +=
      "block c: a hop's bf16 keys and values, 4 c d bytes, hide behind 4 c^2 d flops at F/B flops a byte (arXiv:2310.01889,\n"
      "table 2). zigzag: a causal hop has 2 c^2 d flops. backward: 5 c^2 d flops against 4 c d bytes of bf16 keys and values\n"
      "and 8 c d of f32 gradients; all f32: 8 c d, 16 c d bytes. F and B are the hosts' peaks; kernels below peak hide sooner.\n\n";
  constexpr double b = 1, h = 4096, n = 32, s = 1 << 20, c = 1 << 17;
  const std::vector<std::vector<std::string>> layers{
      {"activations of a layer, bf16", "attention", "feed forward", "total", "b 1, h 4096, n 32, s 1M, c 128k"},
      {"vanilla", "2 b n s^2", "8 b s h", "2 b n s^2", human_bytes(2 * b * n * s * s)},
      {"memory-efficient attention", "2 b s h + 4 b c h", "8 b s h", "8 b s h", human_bytes(8 * b * s * h)},
      {"blockwise", "2 b s h", "2 b s h", "2 b s h", human_bytes(2 * b * s * h)},
      {"ring", "6 b c h", "2 b c h", "6 b c h", human_bytes(6 * b * c * h)},
  };
  text += format_table(layers);
  text +=
      "s: tokens in all; c: tokens of a device (table 1). What this trainer keeps of each token and layer, f32, width w, q = "
      "heads *\nhead_dim, k = kv_heads * head_dim, m = mlp_width: none 4 (3 w + 2 q + 2 k + heads + 3 m) (QK-norm: 4 (q + 2 k) "
      "more),\nselective 4 (w + q + heads), full 4 w.";
  return text;
}

int64_t kept_bytes_per_token(const GptConfig& gpt, Recompute policy) {
  const int64_t w = gpt.width, q = gpt.heads.q_width(), k = gpt.heads.kv_heads * gpt.heads.head_dim;
  switch (policy) {
    case Recompute::none:
      return 4 * (3 * w + 2 * q + 2 * k + gpt.heads.heads + 3 * gpt.mlp_width + (gpt.qk_norm ? q + 2 * k : 0));
    case Recompute::selective:
      return 4 * (w + q + gpt.heads.heads);
    case Recompute::full:
      return 4 * w;
    case Recompute::automatic:
      break;
  }
  CHECK(false, "no recompute policy was chosen");
}

}  // namespace ringlet
