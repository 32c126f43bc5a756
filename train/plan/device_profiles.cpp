#include "train/plan/device_profiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "train/units.h"

namespace ringlet {
namespace {

struct Profile {
  const char *name, *model, *device, *source;
  double memory_bytes, peak_flops;
  double matmul_flops, forward_flops, backward_flops, bytes_per_second;
  double host_bytes_per_second;
  const char* link;
};

const std::array kProfiles{
    Profile{"h200", "H200", "NVIDIA H200 (bf16)",
            "products 770 TFLOP/s and copies 4.3 TB/s measured on one H200; attention 688 / 581 TFLOP/s: cuDNN 9.19, head_dim "
            "128, T = 32k (cudnn-frontend's benchmark tables); an upper bound for other kernels",
            143'771.0 * 1024 * 1024, 989e12, 770e12, 688e12, 581e12, 4.3e12, 55e9, "nvlink4"},
    Profile{"h100", "H100", "NVIDIA H100 SXM (bf16)",
            "peak and bandwidth: NVIDIA's data sheet; products and attention: as on an H200, attention forward 4 % faster, "
            "backward 3.5 % slower (flash-attention issue 1438)",
            80e9, 989e12, 770e12, 715e12, 561e12, 3.35e12, 55e9, "nvlink4"},
    Profile{"a100", "A100", "NVIDIA A100 80 GB (bf16)",
            "peak and bandwidth: NVIDIA's data sheet; products at 80 % of it; attention: flash-attention of zhuzilin's "
            "ring-flash-attention tables (forward + backward 182 TFLOP/s)",
            80e9, 312e12, 250e12, 205e12, 174e12, 2.0e12, 25e9, "nvlink3"},
};

/// Bytes that an operation reads and writes for an element of its largest tensor, f32.
double bytes_per_element(Op op) {
  switch (op) {
    case Op::fill: case Op::upload: case Op::read: case Op::sum_of_squares: case Op::rotary_table:
    case Op::attention_start: return 4;
    case Op::attention_delta: case Op::qkv_split_forward: case Op::qkv_split_backward:
    case Op::rms_norm_forward: case Op::copy: case Op::attention_finish: case Op::embedding_forward: return 8;
    case Op::add: case Op::cross_entropy: case Op::embedding_backward: return 12;
    case Op::rms_norm_backward: return 16;
    case Op::swiglu_forward: return 6;
    case Op::swiglu_backward: return 10;
    case Op::adamw: return 28;
    default: return 0;
  }
}

}  // namespace

double published_peak_flops(std::string_view gpu) {
  // Boards on PCIe and halves of pairs are slower, but for the A100; a part of a GPU is.
  if (gpu.find("MIG") != std::string_view::npos || gpu.find("NVL") != std::string_view::npos) return 0;
  for (const Profile& profile : kProfiles) {
    const size_t begin = gpu.find(profile.model), end = begin + std::string_view(profile.model).size();
    if (begin == std::string_view::npos || (begin > 0 && gpu[begin - 1] != ' ')) continue;
    if (end < gpu.size() && gpu[end] != ' ' && gpu[end] != '-') continue;
    const bool slower = std::string_view(profile.name) != "a100" && gpu.find("PCIe") != std::string_view::npos;
    return slower ? 0 : profile.peak_flops;
  }
  return 0;
}

Rates rates_of_device(std::string_view name) {
  const auto found = std::ranges::find(kProfiles, name, &Profile::name);
  if (found == kProfiles.end()) {
    throw UsageError(fmt::format("no device is called \"{}\"", name),
                     fmt::format("choose {} or \"this\"; --link and --budget change its link and memory",
                                 name_list(kProfiles)));
  }
  Rates rates;
  rates.device = found->device;
  rates.source = std::string(found->source) +
                 "; copies to the host: what PCIe 5 (A100: 4) leaves of its rate; products "
                 "and attention in bf16, other operations on f32";
  rates.link = parse_link(found->link);
  rates.memory_bytes = found->memory_bytes;
  rates.peak_flops = found->peak_flops;
  rates.offload_bytes_per_second = found->host_bytes_per_second;
  const auto always = [&](Op op, double work_per_second) {
    rates.put(op, {{1, 1, 1}, work_per_second, 1});
  };
  for (int op = 0; op < kOpCount; ++op) {
    if (is_matmul(Op(op))) {
      always(Op(op), found->matmul_flops);
    } else if (!is_attention(Op(op))) {
      always(Op(op), found->bytes_per_second / bytes_per_element(Op(op)));
    }
  }
  always(Op::attention_forward, found->forward_flops);
  always(Op::attention_backward, found->backward_flops);
  return rates;
}

}  // namespace ringlet
