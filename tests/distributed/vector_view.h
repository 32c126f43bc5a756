#pragma once

#include <vector>

#include "kernels/tensor.h"

namespace ringlet::test {

/// The vector's memory as a flat tensor; valid until the vector changes its size.
template <class T>
Tensor view(std::vector<T>& values) {
  return make_tensor(reinterpret_cast<std::byte*>(values.data()), dtype_of<T>(),
                     {int64_t(values.size()), 1, 1, 1});
}

}  // namespace ringlet::test
