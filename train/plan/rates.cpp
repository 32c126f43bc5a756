#include "train/plan/rates.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "train/console.h"

namespace ringlet {

std::string Rates::source_text() const {
  using std::chrono::system_clock;
  if (measured_at == 0) return source;
  const auto age = system_clock::now() - system_clock::from_time_t(measured_at);
  return source + ", last " + human_seconds(std::max(0.0, std::chrono::duration<double>(age).count())) + " ago";
}

void Rates::put(Op op, const Sample& sample) {
  std::vector<Sample>& samples = samples_[size_t(op)];
  const auto same = std::ranges::find(samples, sample.size, &Sample::size);
  if (same == samples.end()) {
    samples.push_back(sample);
  } else {
    *same = sample;
  }
}

double Rates::seconds(Op op, const std::array<int64_t, 3>& size, double work) const {
  double weights = 0, sum = 0;
  for (const Sample& sample : samples(op)) {
    double distance = 0;
    for (size_t i = 0; i < size.size(); ++i) {
      const double ratio = std::log2(double(std::max<int64_t>(1, size[i])) /
                                     double(std::max<int64_t>(1, sample.size[i])));
      distance += ratio * ratio;
    }
    // The square again, so that a sample of this very size speaks alone.
    const double weight = 1 / (distance * distance + 1e-6);
    weights += weight;
    sum += weight * std::log(sample.work / sample.seconds);
  }
  return weights > 0 ? work / std::exp(sum / weights) : 0;
}

}  // namespace ringlet
