#pragma once

#include <hwy/base.h>

#include <cstdint>

namespace ringlet::cpu {

/// Fetches rows that are read next into the L2 cache, a few at a time while something else is computed: many at once would
/// hold up its loads.
class Prefetch {
 public:
  static constexpr int64_t kLineFloats = 16;

  Prefetch() = default;
  /// `columns` of each of `rows` rows, in at most `calls` calls.
  Prefetch(const float* from, int64_t row_step, int64_t rows, int64_t columns, int64_t calls)
      : next_(from), row_step_(row_step), rows_(rows), columns_(columns), rows_a_call_((rows + calls - 1) / calls) {}

  HWY_INLINE void go_on() {
    if (rows_ <= 0) return;
    for (int64_t row = 0; row < rows_a_call_; ++row, next_ += row_step_) {
      for (int64_t i = 0; i < columns_; i += kLineFloats) __builtin_prefetch(next_ + i, 0, 2);
    }
    rows_ -= rows_a_call_;
  }

 private:
  const float* next_ = nullptr;
  int64_t row_step_ = 0, rows_ = 0, columns_ = 0, rows_a_call_ = 0;
};

}  // namespace ringlet::cpu
