#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/comm/emulated_link.h"

namespace ringlet {

/// "450GB/s,3us": a link by its bandwidth in each direction and its latency, or one of "nvlink4", "nvlink3",
/// "infiniband400", "infiniband100". Throws UsageError that lists the names and shows the form.
Link parse_link(std::string_view text);

/// "80GiB", "512MiB", "2GB", "1000000". Throws UsageError that shows the form.
double parse_bytes(std::string_view text);

/// "4k", "1M", "1000": tokens, where k is 1024 and M 1024 k. Throws UsageError that shows the form.
int64_t parse_tokens(std::string_view text);

/// "a", "b", "c": the names of things that have one, for advice.
template <class Named>
std::string name_list(const Named& all) {
  std::string text;
  for (const auto& each : all) text += (text.empty() ? "\"" : ", \"") + std::string(each.name) + '"';
  return text;
}

}  // namespace ringlet
