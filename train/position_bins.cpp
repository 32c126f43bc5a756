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
int64_t bin_of(int64_t index) { return int64_t(std::bit_width(uint64_t(index))); }

}  // namespace

double InContextScore::standard_error() const {
  return std::hypot(around_50.standard_error, around_500.standard_error);
}

PositionBins::PositionBins(int64_t length)
    : length_(length), bin_count_(bin_of(std::max<int64_t>(length, 1) - 1) + 1) {
  CHECK(length >= 1, "length = ", length);
  const int64_t quarter = std::max<int64_t>(1, length / 4);
  ranges_[kFirstQuarter] = {0, quarter - 1};
  ranges_[kLastQuarter] = {length - quarter, length - 1};
  ranges_[kAround50] = {45, 54};
  ranges_[kAround500] = {475, 524};
  ranges_[kAll] = {0, length - 1};
  sums_.resize(size_t(kSums * range_group(kRanges)));
}

void PositionBins::add(int64_t position, int64_t distance, double loss) {
  CHECK(0 <= distance && distance <= position && position < length_, "position ", position, " of ",
        length_, ", ", distance, " into its document");
  add_to(bin_of(position), loss);
  add_to(bin_count_ + bin_of(distance), loss);
  for (int64_t i = 0; i < kRanges; ++i) {
    const auto [first, last] = ranges_[size_t(i)];
    if (position >= first && position <= last) add_to(range_group(i), loss);
  }
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

std::vector<PositionBins::Bin> PositionBins::bins(int64_t first_group) const {
  std::vector<Bin> result;
  for (int64_t bin = 0; bin < bin_count_; ++bin) {
    const int64_t first = bin == 0 ? 0 : int64_t(1) << (bin - 1);
    const int64_t end = int64_t(1) << bin;
    result.push_back({first, std::min(end, length_) - 1, loss_of(first_group + bin)});
  }
  return result;
}

bool PositionBins::distance_differs() const {
  // A distance is never larger than its position: equal counts are equal tokens.
  for (int64_t bin = 0; bin < bin_count_; ++bin) {
    if (loss_of(bin).count != loss_of(bin_count_ + bin).count) return true;
  }
  return false;
}

double PositionBins::first_quarter() const { return loss_of(range_group(kFirstQuarter)).mean; }
double PositionBins::last_quarter() const { return loss_of(range_group(kLastQuarter)).mean; }

std::optional<InContextScore> PositionBins::in_context_score() const {
  const InContextScore result{loss_of(range_group(kAround50)), loss_of(range_group(kAround500))};
  const bool reached = length_ > ranges_[kAround500].last;
  if (!reached || result.around_50.count == 0 || result.around_500.count == 0) return {};
  return result;
}

PositionBins PositionBins::from_flat(int64_t length, std::span<const double> flat) {
  PositionBins result(length);
  CHECK(flat.size() == result.sums_.size(), flat.size(), " sums for length ", length);
  result.sums_.assign(flat.begin(), flat.end());
  return result;
}

}  // namespace ringlet
