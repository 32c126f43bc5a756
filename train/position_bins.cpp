#include "train/position_bins.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/check.h"

namespace ringlet {
namespace {

constexpr int64_t kSums = 3;  // count, sum, sum of squares

/// 0, 1, 2-3, 4-7, ...: the number of binary digits.
int64_t bin_of(int64_t position) { return int64_t(std::bit_width(uint64_t(position))); }

}  // namespace

PositionBins::PositionBins(int64_t length)
    : length_(length),
      bin_count_(bin_of(std::max<int64_t>(length, 1) - 1) + 1),
      quarter_(std::max<int64_t>(1, length / 4)),
      sums_(size_t(kSums * (bin_count_ + 3))) {
  CHECK(length >= 1, "length = ", length);
}

void PositionBins::add(int64_t position, double loss) {
  CHECK(position >= 0 && position < length_, "position ", position, " of ", length_);
  add_to(bin_of(position), loss);
  if (position < quarter_) add_to(bin_count_, loss);
  if (position >= length_ - quarter_) add_to(bin_count_ + 1, loss);
  add_to(bin_count_ + 2, loss);
}

void PositionBins::add_to(int64_t group, double loss) {
  double* sums = &sums_[size_t(kSums * group)];
  sums[0] += 1;
  sums[1] += loss;
  sums[2] += loss * loss;
}

MeanLoss PositionBins::loss_of(int64_t group) const {
  const double* sums = &sums_[size_t(kSums * group)];
  const double count = sums[0], mean = sums[1] / count;  // of no tokens: NaN
  if (count < 2) return {int64_t(count), mean, std::numeric_limits<double>::quiet_NaN()};
  const double variance = (sums[2] - sums[1] * mean) / (count - 1);
  // Rounding may leave a hair below zero; NaN stays NaN.
  return {int64_t(count), mean, std::sqrt((variance < 0 ? 0 : variance) / count)};
}

std::vector<PositionBins::Bin> PositionBins::bins() const {
  std::vector<Bin> result;
  for (int64_t bin = 0; bin < bin_count_; ++bin) {
    const int64_t first = bin == 0 ? 0 : int64_t(1) << (bin - 1);
    const int64_t end = int64_t(1) << bin;
    result.push_back({first, std::min(end, length_) - 1, loss_of(bin)});
  }
  return result;
}

double PositionBins::first_quarter() const { return loss_of(bin_count_).mean; }
double PositionBins::last_quarter() const { return loss_of(bin_count_ + 1).mean; }
MeanLoss PositionBins::all() const { return loss_of(bin_count_ + 2); }

PositionBins PositionBins::from_flat(int64_t length, std::span<const double> flat) {
  PositionBins result(length);
  CHECK(flat.size() == result.sums_.size(), flat.size(), " sums for length ", length);
  result.sums_.assign(flat.begin(), flat.end());
  return result;
}

}  // namespace ringlet
