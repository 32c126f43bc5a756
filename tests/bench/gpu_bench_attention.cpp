// Attention by each kernel that serves.
#include "tests/bench/gpu_bench_pass.h"

namespace ringlet::bench {
namespace {

constexpr int64_t kGib = int64_t{1} << 30;

const char* name_of(CudaAttention path) {
  return path == CudaAttention::plain ? "plain" : path == CudaAttention::mma ? "mma" : "wgmma";
}

std::vector<CudaAttention> paths_of(int32_t compute_capability) {
  std::vector<CudaAttention> paths = {CudaAttention::mma};
  if (compute_capability == 90) paths.push_back(CudaAttention::wgmma);
  return paths;
}

void measure_size(Gpu& gpu, CudaAttention path, const HeadShape& shape, int64_t length, Report& report) {
  for (const bool causal : {true, false}) {
    const ArenaScope scope(gpu->arena());
    const Pass pass = make_pass(gpu, shape, {{causal ? 0 : length, 1, 0, length}}, {{0, 1, 0, length}});
    const Times times = time_steps(gpu, pass);
    const double flops = 4.0 * double(length) * double(length) * double(shape.q_width()) / (causal ? 2 : 1);
    const std::string name = std::string(name_of(path)) + ", head_dim " + std::to_string(shape.head_dim) +
                             ", T " + std::to_string(length / 1024) + "k, " +
                             (causal ? "causal" : "full block");
    report.add(name + ", forward", times.forward_ms, flops / times.forward_ms / 1e9, "TFLOP/s");
    report.add(name + ", backward", times.backward_ms, 2.5 * flops / times.backward_ms / 1e9, "TFLOP/s");
  }
}

}  // namespace

void measure_attention(const CudaInterface& interface, int32_t compute_capability, Extent extent,
                       Report& report) {
  report.begin("Attention",
               "bf16, batch 1; forward 4 T^2 H d flops, half of that causal; backward 2.5 times forward");
  std::vector<int64_t> lengths = {2048, 8192};
  if (extent == Extent::full) lengths = {2048, 8192, 16384, 32768};
  std::vector<CudaAttention> paths = paths_of(compute_capability);
  paths.push_back(CudaAttention::plain);
  for (const CudaAttention path : paths) {
    try {
      Gpu gpu(interface, path, 6 * kGib);
      for (const HeadShape& shape : {HeadShape{16, 16, 128}, {32, 32, 64}}) {
        for (const int64_t length : lengths) {
          if (path == CudaAttention::plain && length > 2048) continue;  // no tensor cores: seconds
          measure_size(gpu, path, shape, length, report);
        }
      }
      if (path == CudaAttention::plain) continue;
      measure_size(gpu, path, {16, 4, 128}, 8192, report);  // grouped heads: less traffic of keys
    } catch (const std::exception& error) {
      report.skip(name_of(path), error.what());
    }
  }
}

}  // namespace ringlet::bench
