#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/bf16.h"
#include "kernels/check.h"

namespace ringlet {

enum class Dtype : uint8_t { f32, f64, i32, i64, bf16 };

constexpr int64_t element_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16: return 2;
    case Dtype::f32:
    case Dtype::i32: return 4;
    case Dtype::f64:
    case Dtype::i64: return 8;
  }
  return 0;
}

constexpr const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return "f32";
    case Dtype::f64: return "f64";
    case Dtype::i32: return "i32";
    case Dtype::i64: return "i64";
    case Dtype::bf16: return "bf16";
  }
  return "?";
}

template <class T>
constexpr Dtype dtype_of() {
  using Plain = std::remove_const_t<T>;
  if constexpr (std::is_same_v<Plain, float>) return Dtype::f32;
  else if constexpr (std::is_same_v<Plain, double>) return Dtype::f64;
  else if constexpr (std::is_same_v<Plain, int32_t>) return Dtype::i32;
  else if constexpr (std::is_same_v<Plain, Bf16>) return Dtype::bf16;
  else { static_assert(std::is_same_v<Plain, int64_t>); return Dtype::i64; }
}

using Shape = std::array<int64_t, 4>;

/// A row-major view of memory that an Arena owns. Cheap to copy; valid until the Arena rewinds.
/// A default tensor is absent (`data` is null); a tensor of zero rows is present and empty.
struct Tensor {
  std::byte* data = nullptr;
  Dtype dtype = Dtype::f32;
  Shape shape{1, 1, 1, 1};  // unused trailing dimensions are 1
  int64_t row_stride = 0;   // elements between indices of shape[0]; larger than a row in a column slice

  int64_t size() const { return shape[0] * shape[1] * shape[2] * shape[3]; }
  int64_t bytes() const { return size() * element_bytes(dtype); }
  int64_t rows() const { return shape[0]; }
  int64_t row_size() const { return shape[1] * shape[2] * shape[3]; }
  bool contiguous() const { return row_stride == row_size() || shape[0] <= 1; }
  explicit operator bool() const { return data != nullptr; }

  /// The elements as T, in order. Throws Error if T is not the stored dtype or rows are apart.
  template <class T>
  std::span<T> as() const {
    CHECK(dtype == dtype_of<T>(), "tensor of dtype ", name_of(dtype), " read as ", name_of(dtype_of<T>()));
    CHECK(contiguous(), "row stride ", row_stride, " of a row of ", row_size());
    return {reinterpret_cast<T*>(data), static_cast<size_t>(size())};
  }

  /// First element of a row as T, for tensors whose rows may be apart. Throws Error on another dtype.
  template <class T>
  T* row(int64_t index) const {
    CHECK(dtype == dtype_of<T>(), "tensor of dtype ", name_of(dtype), " read as ", name_of(dtype_of<T>()));
    return reinterpret_cast<T*>(data) + index * row_stride;
  }

  /// `count` indices of shape[0] from `first`.
  Tensor slice(int64_t first, int64_t count) const {
    CHECK(first >= 0 && count >= 0 && first + count <= shape[0], "rows ", first, " + ", count, " of ",
          shape[0]);
    Tensor part = *this;
    part.data += first * row_stride * element_bytes(dtype);
    part.shape[0] = count;
    return part;
  }

  /// Columns [first, first + count) of a matrix; keeps the row stride.
  Tensor columns(int64_t first, int64_t count) const {
    CHECK(row_size() == shape[1] && first >= 0 && count >= 0 && first + count <= shape[1], "columns ",
          first, " + ", count, " of ", shape[1]);
    Tensor part = *this;
    part.data += first * element_bytes(dtype);
    part.shape[1] = count;
    return part;
  }

  /// The same contiguous elements in another shape.
  Tensor reshaped(Shape other) const {
    Tensor view = *this;
    view.shape = other;
    view.row_stride = view.row_size();
    CHECK(contiguous() && view.size() == size(), "reshape of ", size(), " to ", view.size());
    return view;
  }
};

/// A tensor over memory that somebody else owns, contiguous.
inline Tensor make_tensor(std::byte* data, Dtype dtype, Shape shape) {
  Tensor tensor{data, dtype, shape, 0};
  tensor.row_stride = tensor.row_size();
  return tensor;
}

/// Consecutive rows of a rank and the global positions they stand for:
/// row first_row + i stands for position first_position + i * stride, 0 <= i < row_count.
struct Piece {
  int64_t first_position = 0, stride = 1, first_row = 0, row_count = 0;
  int64_t position(int64_t i) const { return first_position + i * stride; }
  int64_t last_position() const { return position(row_count - 1); }
  bool operator==(const Piece&) const = default;
};

}  // namespace ringlet
