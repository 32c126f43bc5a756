#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda_module.h"
#include "kernels/trace.h"

namespace ringlet::bench {

double median(std::vector<double> values);

/// One line of the table.
struct Figure {
  std::string group, name;
  double ms = 0;  // 0: not a time
  double value = 0;
  std::string unit;  // of the value: TFLOP/s, GB/s, %
  int digits = 1;    // of the value, after the point
};

/// A group's conventions, and what was measured.
class Report {
 public:
  /// Begins a group; `convention` says what is counted.
  void begin(const std::string& group, const std::string& convention);
  /// Prints the line at once, so that a run that is cut off has said what it found.
  void add(const std::string& name, double ms, double value, const std::string& unit, int digits = 1);
  /// Something that was not measured, and why.
  void skip(const std::string& name, const std::string& cause);
  /// gpu_bench.json and gpu_bench.md in the folder.
  void write(const std::string& folder, const CudaDevice& device) const;

 private:
  struct Group {
    std::string name, convention;
  };
  std::vector<Group> groups_;
  std::vector<Figure> figures_;
  std::vector<std::string> skipped_;
};

/// A GPU's memory and operations with one kernel of attention. What a measurement allocates is given back by
/// ArenaScope.
class Gpu {
 public:
  Gpu(const CudaInterface& interface, CudaAttention attention, int64_t arena_bytes,
      CudaTuning tuning = CudaTuning::equal_bits);
  /// A rank's; its random numbers are its own. The trace must outlive this.
  Gpu(const CudaInterface& interface, const CudaBackendOptions& options, int rank, Trace& trace);
  Backend& operator*() { return *device_; }
  Backend* operator->() { return device_.get(); }

  /// A tensor of normal numbers (times `scale`), never zeros: a GPU is faster on zeros than it will ever be
  /// at work.
  Tensor random(Dtype dtype, Shape shape, double scale = 1);
  /// f32 zeros, for sums.
  Tensor zeros(Shape shape);
  Tensor empty(Dtype dtype, Shape shape) { return device_->arena().allocate("bench", dtype, shape); }
  Tensor integers(int64_t count, int64_t below);

  /// Milliseconds of one body(): median over batches of calls, the queue drained around each batch. Warms up
  /// first; takes about `budget_ms`, but at least three batches.
  double time(const std::function<void()>& body, double budget_ms = 150);

 private:
  Trace own_trace_;
  std::unique_ptr<Backend> device_;
  Tensor pool_f32_, pool_bf16_;
  int64_t next_ = 0;  // place in the pool
};

enum class Extent : uint8_t { quick, full };

void measure_attention(const CudaInterface& interface, int32_t compute_capability, Extent extent,
                       Report& report);
void measure_ring(const CudaInterface& interface, Extent extent, Report& report);
void measure_ring_error(const CudaInterface& interface, Report& report);
void measure_links(const CudaInterface& interface, Extent extent, Report& report);
/// fastest: with CudaTuning::fastest, to compare with.
void measure_matmul(Gpu& gpu, Gpu& fastest, Extent extent, Report& report);
void measure_elements(Gpu& gpu, Report& report);

}  // namespace ringlet::bench
