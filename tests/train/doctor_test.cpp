#include "train/commands/doctor.h"

#include <gtest/gtest.h>

namespace ringlet {
namespace {

constexpr int64_t kGiB = int64_t(1) << 30;

/// What doctor makes of a machine, as NAME: VALUE (ADVICE).
std::vector<std::string> findings_on(CudaMachine (*examine)()) {
  const CudaInterface interface{kCudaInterfaceVersion, examine};
  std::vector<std::string> lines;
  for (const auto& [name, value, advice] : cuda_findings({&interface, ""})) {
    lines.push_back(name + ": " + value + " (" + advice + ")");
  }
  return lines;
}

CudaMachine three_devices() {
  return {13010,
          13000,
          {{"First", 90, 132, 80 * kGiB, 79 * kGiB, {1}, ""},
           {"Second", 120, 170, 32 * kGiB, -1, {}, "out of memory"},
           {"", 0, 0, 0, -1, {}, "unspecified launch failure"}},
          ""};
}

TEST(Doctor, ListsEveryGpuWithWhatItLacks) {
  const std::vector<std::string> expected{
      "CUDA: module found, driver for CUDA 13.1, runtime 13.0 ()",
      "GPU 0: First, compute capability 9.0, 132 multiprocessors, 80.0 GiB, 79.0 GiB free, "
      "peer access to GPU 1 ()",
      "GPU 1: Second, compute capability 12.0, 170 multiprocessors, 32.0 GiB "
      "(use of this GPU: out of memory)",
      "GPU 2: unknown (use of this GPU: unspecified launch failure)"};
  EXPECT_EQ(findings_on(three_devices), expected);
}

TEST(Doctor, ModuleWithoutDevices) {
  const auto lines = findings_on([] { return CudaMachine{0, 13000, {}, "no driver"}; });
  const std::vector<std::string> expected{
      "CUDA: module found, no driver; training runs on the CPU ()"};
  EXPECT_EQ(lines, expected);
}

TEST(Doctor, NoModule) {
  const auto findings = cuda_findings({nullptr, "module not built"});
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(findings[0].value, "module not built; training runs on the CPU");
}

}  // namespace
}  // namespace ringlet
