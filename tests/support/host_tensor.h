#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/random.h"

namespace ringlet::test {

/// A device and the way to it from vectors of the host: what a test of operations needs.
/// Tensors live until the bench dies (or the test rewinds device->arena()).
struct Bench {
  Trace trace;
  std::unique_ptr<Backend> device;

  explicit Bench(int64_t arena_bytes = int64_t{1} << 28, int threads = 1)
      : device(make_cpu_backend(arena_bytes, trace, threads)) {}

  /// A tensor that holds the values. Throws Error unless they are as many as the shape says.
  template <class T>
  Tensor put(const std::vector<T>& values, Shape shape) {
    const Tensor tensor = device->arena().allocate("test", dtype_of<T>(), shape);
    upload<T>(*device, values, tensor);
    return tensor;
  }

  /// An f32 tensor in which every element is NaN: an operation that must set it all is seen to do
  /// so.
  Tensor poisoned(Shape shape) {
    const Tensor tensor = device->arena().allocate("test", Dtype::f32, shape);
    device->fill(std::numeric_limits<float>::quiet_NaN(), tensor);
    return tensor;
  }

  /// The values of a contiguous tensor. Waits.
  template <class T = float>
  std::vector<T> get(const Tensor& tensor) {
    std::vector<T> values(tensor.size());
    read<T>(*device, tensor, values);
    return values;
  }
};

/// `count` normal numbers of the stream that `seed` names, times `scale`.
inline std::vector<float> random_values(int64_t count, uint64_t seed, double scale = 1) {
  const CounterRandom random(seed, hash_name("test values"));
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = float(scale * random.normal(i));
  return values;
}

inline std::vector<double> widen(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

}  // namespace ringlet::test
