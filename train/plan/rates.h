#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels/comm/emulated_link.h"
#include "kernels/op_call.h"

namespace ringlet {

/// How fast a device computes: measured operations, by size. An operation of another size runs at a rate between those
/// of all sizes measured (weights: distance^-4; sizes and rates on logarithmic scales).
class Rates {
 public:
  struct Sample {
    std::array<int64_t, 3> size;
    double work, seconds;  // as in OpCall; attention: flops
  };

  std::string device, source;  // "AMD EPYC, AVX2, 1 thread", where the rates come from
  Link link;
  double memory_bytes = 0;     // of one device; 0: not known
  double peak_flops = 0;       // the denominator of MFU; 0: not known

  double offload_bytes_per_second = 0;  // of a rank's copies to and from where tensors are offloaded; 0: not known

  double foreign_bytes = 0;    // of a process, beside the arenas: program, libraries, stacks; 0: not known

  int64_t measured_at = 0;  // the last time: seconds since 1970; 0: not known
  double spread = 0;  // of calls of one size when they were measured, half of p10 to p90 over the median; 0: not known

  /// The source, and how long ago it was.
  std::string source_text() const;

  /// In place of a sample of the same size, if there is one.
  void put(Op op, const Sample& sample);
  const std::vector<Sample>& samples(Op op) const { return samples_[size_t(op)]; }
  /// `work`: in flops for attention. Operations without a sample take no time.
  double seconds(Op op, const std::array<int64_t, 3>& size, double work) const;

 private:
  std::array<std::vector<Sample>, size_t(kOpCount)> samples_;
};

}  // namespace ringlet
