#include <algorithm>
#include <source_location>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/matmul.h"

namespace ringlet::cuda {
namespace {

constexpr int kMostAlgorithms = 16;

/// Is the product large enough to pay for a trial of algorithms?
bool is_tuned(const shapes::MatmulSizes& sizes, const Tensor& a) {
  return a.dtype == Dtype::bf16 && double(sizes.m) * double(sizes.n) * double(sizes.k) >= 0x1p30;
}

void check_cublas(cublasStatus_t status, std::source_location at = std::source_location::current()) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    fail("cuBLASLt call succeeded", at.file_name(), int(at.line()), cublasLtGetStatusString(status));
  }
}

cudaDataType_t data_type(Dtype dtype) { return dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// Elements between rows; of a single row the tensor may say anything.
int64_t leading_dimension(const Tensor& matrix) {
  return std::max<int64_t>({matrix.rows() > 1 ? matrix.row_stride : matrix.shape[1], matrix.shape[1], 1});
}

/// The largest power of two, up to 256, that divides the address.
int64_t alignment_of(const Tensor& matrix) {
  const auto address = reinterpret_cast<uintptr_t>(matrix.data);
  return int64_t(address == 0 ? 256 : std::min<uintptr_t>(address & -address, 256));
}

struct DestroyLayout {
  void operator()(cublasLtMatrixLayout_t layout) const { cublasLtMatrixLayoutDestroy(layout); }
};
using Layout = std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyLayout>;

/// A row-major matrix, as cuBLASLt sees it: column-major and transposed.
Layout make_layout(const Tensor& matrix) {
  cublasLtMatrixLayout_t layout = nullptr;
  check_cublas(cublasLtMatrixLayoutCreate(&layout, data_type(matrix.dtype), uint64_t(matrix.shape[1]),
                                          uint64_t(matrix.shape[0]), leading_dimension(matrix)));
  return Layout(layout);
}

struct DestroyProduct {
  void operator()(cublasLtMatmulDesc_t product) const { cublasLtMatmulDescDestroy(product); }
};
using Product = std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyProduct>;

Product make_product(Transpose first, Transpose second) {
  cublasLtMatmulDesc_t product = nullptr;
  // 32F without "fast": f32 operands are not cut to TF32.
  check_cublas(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Product owner(product);
  const auto set = [&](cublasLtMatmulDescAttributes_t which, Transpose transpose) {
    const cublasOperation_t operation = transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_cublas(cublasLtMatmulDescSetAttribute(product, which, &operation, sizeof(operation)));
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, first);
  set(CUBLASLT_MATMUL_DESC_TRANSB, second);
  return owner;
}

struct DestroyPreference {
  void operator()(cublasLtMatmulPreference_t preference) const {
    cublasLtMatmulPreferenceDestroy(preference);
  }
};
using Preference = std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, DestroyPreference>;

template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t which, T value) {
  check_cublas(cublasLtMatmulPreferenceSetAttribute(preference.get(), which, &value, sizeof(value)));
}

Preference make_preference(size_t workspace_bytes, const Tensor& first, const Tensor& second,
                           const Tensor& out) {
  cublasLtMatmulPreference_t created = nullptr;
  check_cublas(cublasLtMatmulPreferenceCreate(&created));
  Preference preference(created);
  set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(workspace_bytes));
  // Parts of a sum over k meet in the workspace, in f32 and in a fixed order; never by atomics.
  set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(alignment_of(first)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(alignment_of(second)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(alignment_of(out)));
  set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(alignment_of(out)));
  return preference;
}

}  // namespace

// The row-major product out = a * b is the column-major one out' = b' * a': b is cuBLASLt's first operand.
struct Matmul::Plan {
  Product product;
  Layout first, second, out;
  /// As cuBLASLt proposes them, the best guess first; one alone where that is settled. There may be none.
  /// An array: the type has no name, which nvcc 13.0 cannot bear in a vector.
  cublasLtMatmulAlgo_t algorithms[kMostAlgorithms]{};
  int count = 0;
};

Matmul::Matmul(std::span<std::byte> workspace, std::span<std::byte> scratch, CudaTuning tuning)
    : workspace_(workspace),
      scratch_(scratch),
      tuning_(tuning),
      choices_(MatmulChoices::of_device(tuning)) {
  check_cublas(cublasLtCreate(&handle_));
}

Matmul::~Matmul() { cublasLtDestroy(handle_); }

std::unique_ptr<Matmul::Plan> Matmul::make_plan(const shapes::MatmulSizes& sizes, const Tensor& a,
                                                Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                                                const Tensor& out) const {
  auto plan = std::make_unique<Plan>();
  if (sizes.k == 0) return plan;
  plan->product = make_product(transpose_b, transpose_a);
  plan->first = make_layout(b);
  plan->second = make_layout(a);
  plan->out = make_layout(out);
  const Preference preference = make_preference(workspace_.size(), b, a, out);
  cublasLtMatmulHeuristicResult_t found[kMostAlgorithms]{};
  int count = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, plan->product.get(), plan->first.get(), plan->second.get(), plan->out.get(), plan->out.get(),
      preference.get(), is_tuned(sizes, a) ? kMostAlgorithms : 1, found, &count);
  if (status != CUBLAS_STATUS_SUCCESS) return plan;
  for (int i = 0; i < count; ++i) {
    if (found[i].state == CUBLAS_STATUS_SUCCESS) plan->algorithms[plan->count++] = found[i].algo;
  }
  return plan;
}

bool Matmul::multiply(cudaStream_t stream, const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
                      const Tensor& a, const Tensor& b, float beta, void* out) const {
  const float alpha = 1;
  const cublasStatus_t status = cublasLtMatmul(
      handle_, plan.product.get(), &alpha, b.data, plan.first.get(), a.data, plan.second.get(), &beta, out,
      plan.out.get(), out, plan.out.get(), &algorithm, workspace_.data(), workspace_.size(), stream);
  // An algorithm may refuse what the heuristic proposed it for.
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return false;
  check_cublas(status);
  return true;
}

void Matmul::settle(cudaStream_t stream, const MatmulKey& key, Plan& plan, const Tensor& a, const Tensor& b,
                    Write write, const Tensor& out) {
  if (plan.count < 2) return;
  std::optional<cublasLtMatmulAlgo_t> choice = choices_.find(key);
  if (!choice && choices_.begin_trial(key)) {
    const auto run = [&](const cublasLtMatmulAlgo_t& algorithm, float beta, void* to) {
      return multiply(stream, plan, algorithm, a, b, beta, to);
    };
    try {
      choice = fastest_algorithm(MatmulTrial{.stream = stream,
                                             .algorithms = {plan.algorithms, size_t(plan.count)},
                                             .run = run,
                                             .write = write,
                                             .out = out,
                                             .scratch = scratch_,
                                             .tuning = tuning_});
    } catch (...) {
      choices_.end_trial(key, {});
      throw;
    }
    choices_.end_trial(key, choice);
  }
  if (choice) plan.algorithms[0] = *choice, plan.count = 1;
}

void Matmul::run(cudaStream_t stream, const shapes::MatmulSizes& sizes, const Tensor& a,
                 Transpose transpose_a, const Tensor& b, Transpose transpose_b, Write write,
                 const Tensor& out) {
  if (sizes.m == 0 || sizes.n == 0 || (sizes.k == 0 && write == Write::add)) return;
  const MatmulKey key{sizes.m,
                      sizes.n,
                      sizes.k,
                      int64_t(transpose_a),
                      int64_t(transpose_b),
                      int64_t(a.dtype),
                      int64_t(out.dtype),
                      leading_dimension(a),
                      leading_dimension(b),
                      leading_dimension(out),
                      alignment_of(a),
                      alignment_of(b),
                      alignment_of(out)};
  std::unique_ptr<Plan>& plan = plans_[key];
  if (plan == nullptr) plan = make_plan(sizes, a, transpose_a, b, transpose_b, out);
  settle(stream, key, *plan, a, b, write, out);
  const float beta = write == Write::add ? 1 : 0;
  if (plan->count > 0) {
    if (multiply(stream, *plan, plan->algorithms[0], a, b, beta, out.data)) return;
    plan->count = 0;
  }
  plain_matmul(stream, sizes, a, transpose_a, b, transpose_b, write, out);
}

}  // namespace ringlet::cuda
