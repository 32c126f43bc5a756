#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "train/plan/rates.h"

namespace ringlet {

/// A machine that the user need not have, from published figures: "h200", "h100", "a100". Throws UsageError that lists the
/// names. Products in bf16; what else touches memory, at the device's measured or stated bandwidth.
Rates rates_of_device(std::string_view name);
std::vector<std::string> device_names();

/// "450GB/s,3us": a link by its bandwidth in each direction and its latency, or one of "nvlink4", "nvlink3",
/// "infiniband400", "infiniband100". Throws UsageError that lists the names and shows the form.
Link parse_link(std::string_view text);

/// "80GiB", "512MiB", "2GB", "1000000". Throws UsageError that shows the form.
double parse_bytes(std::string_view text);

}  // namespace ringlet
