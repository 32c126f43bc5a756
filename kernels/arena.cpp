#include "kernels/arena.h"

#include <algorithm>
#include <cstring>
#include <exception>

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
                "shorten run.seq_len (generate: --tokens), or use more ranks; `ringlet plan CONFIG` tells what else "
                "makes it smaller");
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
  if (kWatchesFlights && std::uncaught_exceptions() == 0) check_landed(mark);
  while (live_.size() > mark) {
    now_[live_.back().region].bytes -= live_.back().bytes;
    used_bytes_ -= live_.back().bytes;
    live_.pop_back();
  }
  if constexpr (kWatchesFlights) {
    std::erase_if(flights_, [this](const Flight& flight) { return flight.end > base_ + used_bytes_; });
  }
}

void Arena::add_flight(const Tensor& tensor, Event event) {
  if (event.timeline == nullptr || tensor.bytes() == 0) return;
  flights_.push_back({tensor.data, tensor.data + tensor.bytes(), event});
}

void Arena::end_flights(Event event) {
  std::erase_if(flights_, [event](const Flight& flight) {
    return flight.event.timeline == event.timeline && flight.event.value <= event.value;
  });
}

void Arena::check_landed(Mark mark) const {
  const std::byte* begin = base_ + used_bytes_;
  for (Mark block = live_.size(); block > mark; --block) {
    const std::byte* const end = begin;
    begin -= live_[block - 1].bytes;
    for (const Flight& flight : flights_) {
      if (flight.end <= begin || flight.begin >= end) continue;
      throw Error(std::string("memory of '") + now_[live_[block - 1].region].name +
                      "' is freed while a message still uses it",
                  "wait for the Event of that message (Backend::wait) before the scope of its memory ends");
    }
  }
}

void Arena::reset_peak() {
  peak_bytes_ = used_bytes_;
  at_peak_ = now_;
}

}  // namespace ringlet
