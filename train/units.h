#pragma once

#include <string_view>

#include "kernels/comm/emulated_link.h"

namespace ringlet {

/// "450GB/s,3us": a link by its bandwidth in each direction and its latency, or one of "nvlink4", "nvlink3",
/// "infiniband400", "infiniband100". Throws UsageError that lists the names and shows the form.
Link parse_link(std::string_view text);

/// "80GiB", "512MiB", "2GB", "1000000". Throws UsageError that shows the form.
double parse_bytes(std::string_view text);

}  // namespace ringlet
