#include "kernels/cpu/isa.h"

#include <hwy/highway.h>

#include <cstdlib>
#include <string>

#include "kernels/cpu/cpu_backend.h"

namespace ringlet {
namespace cpu {
namespace {

// Better targets have lower bits: HWY_AVX3 and all below it are AVX-512.
constexpr int64_t kAvx512 = (int64_t{HWY_AVX3} << 1) - 1;

void need(int64_t target, std::string_view word) {
  hwy::DisableTargets(0);
  if ((hwy::SupportedTargets() & HWY_TARGETS & target) != 0) return;
  throw UsageError("RINGLET_ISA=" + std::string(word) + ": this processor does not have it",
                   "leave RINGLET_ISA unset to use the best that there is");
}

}  // namespace

void choose_isa(std::string_view word) {
  if (word.empty()) {
    hwy::DisableTargets(0);
  } else if (word == "avx512") {
    need(kAvx512, word);
  } else if (word == "avx2") {
    need(HWY_AVX2, word);
    hwy::DisableTargets(kAvx512);
  } else if (word == "portable") {
    hwy::DisableTargets(~int64_t{HWY_STATIC_TARGET});
  } else {
    throw UsageError("RINGLET_ISA=" + std::string(word) + " is not known",
                     "choose avx512, avx2 or portable, or leave it unset");
  }
}

void choose_isa_once() {
  static const bool chosen = [] {
    const char* const word = std::getenv("RINGLET_ISA");
    choose_isa(word != nullptr ? word : "");
    return true;
  }();
  static_cast<void>(chosen);
}

}  // namespace cpu

const char* cpu_isa_name() {
  cpu::choose_isa_once();
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  const int64_t best = targets & -targets;
  if ((best & cpu::kAvx512) != 0) return "AVX-512";
  return best != 0 ? hwy::TargetName(best) : hwy::TargetName(HWY_STATIC_TARGET);
}

const char* cpu_isa_warning() {
#if HWY_ARCH_X86
  const std::string_view name = cpu_isa_name();
  if (name.find("AVX") == std::string_view::npos) return "without AVX2 or AVX-512 training is several times slower";
  const bool there = (HWY_TARGETS & cpu::kAvx512) != 0 && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (there && name != "AVX-512") return "RINGLET_ISA keeps AVX-512 out: training takes up to twice as long";
#endif
  return "";
}

}  // namespace ringlet
