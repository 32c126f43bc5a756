#pragma once

#include "kernels/bf16.h"

namespace ringlet::test {

/// The bf16 number nearest to `value`, as a float.
inline float round_to_bf16(float value) { return to_float(to_bf16(value)); }

}  // namespace ringlet::test
