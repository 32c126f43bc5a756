#include "train/plan/device_profiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

namespace ringlet {
namespace {

struct Profile {
  const char *name, *device, *source;
  double memory_bytes, peak_flops;
  double matmul_flops, forward_flops, backward_flops, bytes_per_second;
  const char* link;
};

const std::array kProfiles{
    Profile{"h200", "NVIDIA H200 (bf16)",
            "products 770 TFLOP/s and copies 4.3 TB/s measured on one H200; attention 688 / 581 TFLOP/s: cuDNN 9.19, head_dim "
            "128, T = 32k (cudnn-frontend's benchmark tables); an upper bound for other kernels",
            143'771.0 * 1024 * 1024, 989e12, 770e12, 688e12, 581e12, 4.3e12, "nvlink4"},
    Profile{"h100", "NVIDIA H100 SXM (bf16)",
            "peak and bandwidth: NVIDIA's data sheet; products and attention: as on an H200, attention forward 4 % faster, "
            "backward 3.5 % slower (flash-attention issue 1438)",
            80e9, 989e12, 770e12, 715e12, 561e12, 3.35e12, "nvlink4"},
    Profile{"a100", "NVIDIA A100 80 GB (bf16)",
            "peak and bandwidth: NVIDIA's data sheet; products at 80 % of it; attention: flash-attention of zhuzilin's "
            "ring-flash-attention tables (forward + backward 182 TFLOP/s)",
            80e9, 312e12, 250e12, 205e12, 174e12, 2.0e12, "nvlink3"},
};

/// Bytes that an operation reads and writes for an element of its largest tensor, f32.
double bytes_per_element(Op op) {
  switch (op) {
    case Op::fill: case Op::upload: case Op::read: case Op::sum_of_squares: case Op::rotary_table:
    case Op::attention_start: return 4;
    case Op::add: case Op::attention_delta: case Op::qkv_split_forward: case Op::qkv_split_backward:
    case Op::rms_norm_forward: case Op::copy: case Op::attention_finish: case Op::embedding_forward: return 8;
    case Op::cross_entropy: case Op::embedding_backward: return 12;
    case Op::rms_norm_backward: return 16;
    case Op::swiglu_forward: return 6;
    case Op::swiglu_backward: return 10;
    case Op::adamw: return 28;
    default: return 0;
  }
}

struct NamedLink {
  const char* name;
  Link link;
};
const std::array kLinks{
    NamedLink{"nvlink4", {350e9, 3e-6, "nvlink4, 350 GB/s (of 450; NCCL's own ceiling is 370)"}},
    NamedLink{"nvlink3", {270e9, 3e-6, "nvlink3, 270 GB/s (of 300)"}},
    NamedLink{"infiniband400", {47e9, 5e-6, "InfiniBand, 400 Gb/s, 47 GB/s"}},
    NamedLink{"infiniband100", {11.7e9, 5e-6, "InfiniBand, 100 Gb/s, 11.7 GB/s"}},
};

/// A number and the unit behind it.
bool split_number(std::string_view text, double& number, std::string_view& unit) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  unit = text.substr(size_t(end - text.data()));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  return error == std::errc{} && std::isfinite(number) && number > 0;
}

double unit_factor(std::string_view unit) {
  constexpr std::string_view kPrefixes = "kMGTP";
  if (unit.empty() || unit == "B") return 1;
  const size_t power = kPrefixes.find(unit[0] == 'K' ? 'k' : unit[0]);
  if (power == std::string_view::npos) return 0;
  if (unit.substr(1) == "iB") return std::pow(1024.0, double(power + 1));
  if (unit.substr(1) == "B") return std::pow(1000.0, double(power + 1));
  return 0;
}

template <class Named>
std::string list_of(const Named& all) {
  std::string text;
  for (const auto& each : all) text += fmt::format("{}\"{}\"", text.empty() ? "" : ", ", each.name);
  return text;
}

}  // namespace

std::vector<std::string> device_names() {
  std::vector<std::string> names;
  for (const Profile& profile : kProfiles) names.push_back(profile.name);
  return names;
}

Rates rates_of_device(std::string_view name) {
  const auto found = std::ranges::find(kProfiles, name, &Profile::name);
  if (found == kProfiles.end()) {
    throw UsageError(fmt::format("no device is called \"{}\"", name),
                     fmt::format("choose {} or \"this\"; --link and --budget change its link and memory",
                                 list_of(kProfiles)));
  }
  Rates rates;
  rates.device = found->device;
  rates.source = found->source;
  rates.link = parse_link(found->link);
  rates.memory_bytes = found->memory_bytes;
  rates.peak_flops = found->peak_flops;
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

Link parse_link(std::string_view text) {
  const auto found = std::ranges::find(kLinks, text, &NamedLink::name);
  if (found != kLinks.end()) return found->link;
  const size_t comma = text.find(',');
  std::string_view bandwidth = text.substr(0, comma), unit;
  Link link;
  bool good = bandwidth.ends_with("/s") &&
              split_number(bandwidth.substr(0, bandwidth.size() - 2), link.bytes_per_second, unit);
  const double factor = good ? unit_factor(unit) : 0;
  link.bytes_per_second *= factor;
  good = good && factor > 0;
  if (good && comma != std::string_view::npos) {
    double latency = 0;
    good = split_number(text.substr(comma + 1), latency, unit) && (unit == "us" || unit == "ms" || unit == "ns");
    link.latency_seconds = latency * (unit == "us" ? 1e-6 : unit == "ms" ? 1e-3 : 1e-9);
  }
  if (!good) {
    throw UsageError(fmt::format("\"{}\" is not a link", text),
                     fmt::format("give its bandwidth in each direction and its latency, as in 450GB/s,3us, or {}",
                                 list_of(kLinks)));
  }
  link.name = text;
  return link;
}

double parse_bytes(std::string_view text) {
  double number = 0;
  std::string_view unit;
  const bool good = split_number(text, number, unit) && unit_factor(unit) > 0 && number * unit_factor(unit) < 1e18;
  if (!good) {
    throw UsageError(fmt::format("\"{}\" is not a number of bytes", text),
                     "give a number and its unit, as in 80GiB, 512MiB or 2GB");
  }
  return number * unit_factor(unit);
}

}  // namespace ringlet
