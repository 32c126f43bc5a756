#pragma once

#include <span>

#include "kernels/check.h"
#include "kernels/comm.h"

namespace ringlet {

// What a rank can check of its own arguments, the same for every transport. All throw Error.

inline void check_messages(std::span<const Message> messages, int size) {
  for (const Message& message : messages) {
    CHECK(message.peer >= 0 && message.peer < size, "peer ", message.peer, " of ", size, " ranks");
    CHECK(message.tensor.contiguous(), "message with row stride ", message.tensor.row_stride);
  }
}

inline void check_values(const Tensor& values) {
  CHECK(values.contiguous(), "values with row stride ", values.row_stride);
}

inline void check_sum(const Tensor& values) {
  check_values(values);
  CHECK(values.dtype == Dtype::f32 || values.dtype == Dtype::f64, "sum of dtype ",
        int(values.dtype));
}

inline void check_shards(const Tensor& values, const Tensor& shard, int size) {
  check_values(values);
  check_values(shard);
  CHECK(values.dtype == shard.dtype, "values and shard differ in dtype");
  CHECK(values.size() == size * shard.size(), values.size(), " values, shards of ", shard.size(),
        " on ", size, " ranks");
}

inline void check_root(int root, int size) {
  CHECK(root >= 0 && root < size, "root ", root, " of ", size, " ranks");
}

}  // namespace ringlet
