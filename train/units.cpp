#include "train/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "kernels/check.h"

namespace ringlet {
namespace {

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

}  // namespace

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
                                 name_list(kLinks)));
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

int64_t parse_tokens(std::string_view text) {
  int64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  const std::string_view unit = text.substr(size_t(end - text.data()));
  const int64_t factor = unit.empty()                ? 1
                         : unit == "k" || unit == "K" ? int64_t{1} << 10
                         : unit == "M" || unit == "m" ? int64_t{1} << 20
                                                      : 0;
  constexpr int64_t kMost = int64_t{1} << 40;
  if (error != std::errc{} || factor == 0 || count < 1 || count > kMost / factor) {
    throw UsageError(fmt::format("\"{}\" is not a number of tokens", text), "give whole numbers, as in 1000, 4k or 1M");
  }
  return count * factor;
}

}  // namespace ringlet
