#pragma once

#include <vector>

#include "kernels/backend.h"

namespace ringlet {

/// A tensor of f32 on the host. Waits.
inline std::vector<float> host_values(Backend& device, const Tensor& tensor) {
  std::vector<float> values(size_t(tensor.size()));
  read<float>(device, tensor, values);
  return values;
}

}  // namespace ringlet
