#pragma once

#include <span>
#include <vector>

#include "kernels/backend.h"

namespace ringlet {

/// A tensor of f32 or bf16 on the host. Waits.
inline std::vector<float> host_values(Backend& device, const Tensor& tensor) {
  std::vector<float> values(size_t(tensor.size()));
  if (tensor.dtype != Dtype::bf16) {
    read<float>(device, tensor, values);
    return values;
  }
  std::vector<Bf16> rounded(values.size());
  read<Bf16>(device, tensor, rounded);
  for (size_t i = 0; i < values.size(); ++i) values[i] = to_float(rounded[i]);
  return values;
}

/// Host values to a tensor of f32 or bf16, which they are rounded to.
inline void upload_rounded(Backend& device, std::span<const float> values, const Tensor& to) {
  if (to.dtype != Dtype::bf16) return upload<float>(device, values, to);
  std::vector<Bf16> rounded(values.size());
  for (size_t i = 0; i < values.size(); ++i) rounded[i] = to_bf16(values[i]);
  upload<Bf16>(device, rounded, to);
}

}  // namespace ringlet
