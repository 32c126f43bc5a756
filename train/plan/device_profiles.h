#pragma once

#include <string_view>

#include "train/plan/rates.h"

namespace ringlet {

/// A machine that the user need not have, from published figures: "h200", "h100", "a100". Throws UsageError that lists the
/// names. Products in bf16; what else touches memory, at the device's measured or stated bandwidth.
Rates rates_of_device(std::string_view name);

/// Dense bf16 products of a GPU that calls itself so ("NVIDIA H200"), as published; 0: not known.
double published_peak_flops(std::string_view gpu);

}  // namespace ringlet
