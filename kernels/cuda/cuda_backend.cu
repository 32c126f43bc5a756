#include <chrono>
#include <string>

#include "kernels/cuda/adamw.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/loss.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/rope.h"
#include "kernels/cuda/stream_clock.h"
#include "kernels/cuda/stream_timeline.h"
#include "kernels/cuda/swiglu.h"
#include "kernels/op_shapes.h"

namespace ringlet::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = 32 << 20;  // of cuBLASLt
constexpr int64_t kScratchBytes = 32 << 20;    // of one operation
static_assert(kWorkspaceBytes + kScratchBytes == kCudaRankBytes);
static_assert(kScratchBytes >= kEmbeddingScratchBytes && kScratchBytes >= kSumOfSquaresScratchBytes);

[[noreturn]] void no_such_device(int device, int count, cudaError_t status) {
  if (status != cudaSuccess || count == 0) {
    throw Error("there is no GPU to compute on" +
                    (status == cudaSuccess ? std::string() : std::string(": ") + cudaGetErrorString(status)),
                "`ringlet doctor` says what there is; the CPU backend needs no GPU");
  }
  throw Error("GPU " + std::to_string(device) + " was asked for, but there are " + std::to_string(count) +
                  ", counted from 0",
              "use fewer ranks on each machine, or let CUDA_VISIBLE_DEVICES show more GPUs");
}

/// Makes the device current, for the calling thread.
void use_device(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || device < 0 || device >= count) {
    cudaGetLastError();
    no_such_device(device, count, status);
  }
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device));
  if (properties.major < 8) {
    throw Error("GPU " + std::to_string(device) + ", " + properties.name + ", has compute capability " +
                    std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                    "; 8.0 is needed",
                "use an A100, an H100 or something newer, or the CPU backend");
  }
  check_cuda(cudaSetDevice(device));
}

CudaBytes allocate_on_device(int device, int64_t arena_bytes) {
  CHECK(arena_bytes >= 0, "an arena of ", arena_bytes, " bytes");
  const int64_t bytes = arena_bytes + kCudaRankBytes;
  size_t free_bytes = 0, total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes));
  void* data = nullptr;
  cudaError_t status = cudaErrorMemoryAllocation;
  if (bytes <= int64_t(free_bytes)) status = cudaMalloc(&data, size_t(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(
        "a rank asks for " + std::to_string(bytes) + " bytes of memory on GPU " + std::to_string(device) +
            ", where " + std::to_string(free_bytes) + " of " + std::to_string(total_bytes) + " are free",
        "lower memory.arena_bytes or run.seq_len, use memory.recompute = \"full\" or fewer ranks on a GPU; "
        "`nvidia-smi` shows who else holds memory");
  }
  check_cuda(status);
  return CudaBytes(static_cast<std::byte*>(data));
}

/// Each operation is a check of its shapes and what puts it on the stream.
class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaBackendOptions& options, Trace& trace)
      : device_((use_device(options.device), options.device)),
        attention_(options.attention),
        memory_(allocate_on_device(device_, options.arena_bytes)),
        arena_(memory_.get() + kCudaRankBytes, options.arena_bytes),
        scratch_(memory_.get() + kWorkspaceBytes, size_t(kScratchBytes)),
        timeline_(stream_.get()),
        matmul_({memory_.get(), size_t(kWorkspaceBytes)}, scratch_, options.tuning),
        trace_(trace) {}
  ~CudaBackend() override { cudaStreamSynchronize(stream_.get()); }

  Arena& arena() override { return arena_; }
  Event record() override { return timeline_.record(); }
  void synchronize() override {
    wait_until_idle(stream_.get(), [this] { trace_.sign_of_life(); });
  }
  std::unique_ptr<WorkClock> make_work_clock() override { return std::make_unique<StreamClock>(stream(), trace_); }

  void upload(std::span<const std::byte> host, const Tensor& to) override {
    shapes::upload(host, to);
    if (host.empty()) return;
    check_cuda(cudaMemcpyAsync(to.data, host.data(), host.size(), cudaMemcpyHostToDevice, stream()));
    // Ordinary memory has been read by now, page-locked memory perhaps not.
    cudaPointerAttributes attributes{};
    check_cuda(cudaPointerGetAttributes(&attributes, host.data()));
    if (attributes.type != cudaMemoryTypeUnregistered) synchronize();
  }
  void read(const Tensor& from, std::span<std::byte> host) override {
    shapes::read(from, host);
    synchronize();
    if (host.empty()) return;
    check_cuda(cudaMemcpyAsync(host.data(), from.data, host.size(), cudaMemcpyDeviceToHost, stream()));
    synchronize();
  }
  void fill(float value, const Tensor& to) override {
    shapes::fill(to);
    cuda::fill(stream(), value, to);
  }
  void copy(const Tensor& from, const Tensor& to) override {
    shapes::copy(from, to);
    cuda::copy(stream(), from, to);
  }
  void add(const Tensor& from, const Tensor& to) override {
    shapes::add(from, to);
    cuda::add(stream(), from, to);
  }
  void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) override {
    shapes::copy_rows(from, first_row, to);
    cuda::copy_rows(stream(), from, first_row, to);
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
              const Tensor& out) override {
    const shapes::MatmulSizes sizes = shapes::matmul(a, transpose_a, b, transpose_b, out);
    matmul_.run(stream(), sizes, a, transpose_a, b, transpose_b, write, out);
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y) override {
    shapes::rms_norm_forward(x, weight, y);
    cuda::rms_norm_forward(stream(), x, weight, epsilon, y);
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy, Write write,
                         const Tensor& dx, const Tensor& d_weight) override {
    shapes::rms_norm_backward(x, weight, dy, dx, d_weight);
    cuda::rms_norm_backward(stream(), x, weight, epsilon, dy, write, scratch_, dx, d_weight);
  }

  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    shapes::rotary_table(pieces, table);
    cuda::rotary_table(stream(), pieces, base, table);
  }
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    shapes::qkv_split_forward(split, qkv, q, kv);
    cuda::qkv_split_forward(stream(), split, qkv, q, kv);
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq, const Tensor& dkv,
                          const Tensor& d_qkv, const Tensor& d_q_norm, const Tensor& d_k_norm) override {
    shapes::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    cuda::qkv_split_backward(stream(), split, qkv, dq, dkv, scratch_, d_qkv, d_q_norm, d_k_norm);
  }

  void attention_start(const AttentionState& state) override {
    shapes::attention_start(state);
    cuda::attention_start(stream(), state);
  }
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    shapes::attention_forward(step, q, kv, state);
    cuda::attention_forward(stream(), attention_, step, q, kv, state);
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    shapes::attention_finish(shape, state, output, lse);
    cuda::attention_finish(stream(), shape, state, output, lse);
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    shapes::attention_delta(shape, output, d_output, delta);
    cuda::attention_delta(stream(), shape, output, d_output, delta);
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    shapes::attention_backward(step, q, kv, gradient, dq, dkv);
    cuda::attention_backward(stream(), attention_, step, q, kv, gradient, dq, write, dkv);
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    shapes::swiglu_forward(gate_up, y);
    cuda::swiglu_forward(stream(), gate_up, y);
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    shapes::swiglu_backward(gate_up, dy, d_gate_up);
    cuda::swiglu_backward(stream(), gate_up, dy, d_gate_up);
  }

  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override {
    shapes::embedding_forward(tokens, table, y);
    cuda::embedding_forward(stream(), tokens, table, y);
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    shapes::embedding_backward(tokens, dy, d_table);
    cuda::embedding_backward(stream(), tokens, dy, scratch_, d_table);
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode, float gradient_scale,
                     const Tensor& losses) override {
    shapes::cross_entropy(logits, labels, losses);
    cuda::cross_entropy(stream(), logits, labels, mode, gradient_scale, losses);
  }
  void sum_of_squares(const Tensor& x, const Tensor& result) override {
    shapes::sum_of_squares(x, result);
    cuda::sum_of_squares(stream(), x, scratch_, result);
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights, const Tensor& first_moment,
             const Tensor& second_moment, const Tensor& rounded) override {
    shapes::adamw(settings, gradient, weights, first_moment, second_moment, rounded);
    cuda::adamw(stream(), settings, gradient, weights, first_moment, second_moment, rounded);
  }

 private:
  cudaStream_t stream() const { return stream_.get(); }

  void queue_wait(Event event) override {
    if (event.timeline == nullptr) return;
    if (auto* const other = dynamic_cast<DeviceTimeline*>(event.timeline)) {
      return other->make_wait(stream(), event.value);
    }
    // The host waits, but as long as the stream has work the device does not.
    for (Pause pause; !event.reached() && !is_idle(stream()); pause.take()) trace_.sign_of_life();
    if (event.reached()) return;
    const auto start = std::chrono::steady_clock::now();
    event.wait();
    if (event.timeline->is_of_ranks()) trace_.add_exposed_wait(std::chrono::steady_clock::now() - start);
  }

  const int device_;
  const CudaAttention attention_;
  CudaBytes memory_;  // workspace, scratch, arena
  Arena arena_;
  const std::span<std::byte> scratch_;
  Stream stream_;
  StreamTimeline timeline_;
  Matmul matmul_;
  Trace& trace_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaBackendOptions& options, Trace& trace) {
  return std::make_unique<CudaBackend>(options, trace);
}

}  // namespace ringlet::cuda
