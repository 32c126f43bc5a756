#include "kernels/arena.h"

#include <algorithm>
#include <cstring>

namespace ringlet {

Tensor Arena::allocate(const char* region, Dtype dtype, Shape shape) {
  Tensor tensor = make_tensor(base_ + used_bytes_, dtype, shape);
  CHECK(std::ranges::all_of(shape, [](int64_t n) { return n >= 0; }), "negative shape in ", region);
  const int64_t bytes = (tensor.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > capacity_bytes_ - used_bytes_) {
    std::ostringstream cause;
    cause << "out of memory: '" << region << "' asks for " << bytes << " bytes, "
          << capacity_bytes_ - used_bytes_ << " of " << capacity_bytes_ << " are free";
    throw Error(cause.str(),
                "lower run.seq_len or use more ranks, memory.recompute = \"selective\" or \"full\"");
  }
  size_t index = 0;
  while (index < now_.size() && std::strcmp(now_[index].name, region) != 0) ++index;
  if (index == now_.size()) now_.push_back({region, 0});
  now_[index].bytes += bytes;
  live_.push_back({index, bytes});
  used_bytes_ += bytes;
  if (used_bytes_ > peak_bytes_) {
    peak_bytes_ = used_bytes_;
    at_peak_ = now_;
  }
  return tensor;
}

void Arena::rewind(Mark mark) {
  while (live_.size() > mark) {
    now_[live_.back().region].bytes -= live_.back().bytes;
    used_bytes_ -= live_.back().bytes;
    live_.pop_back();
  }
}

void Arena::reset_peak() {
  peak_bytes_ = used_bytes_;
  at_peak_ = now_;
}

}  // namespace ringlet
