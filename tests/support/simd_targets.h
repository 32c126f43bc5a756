#pragma once

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <string>

namespace ringlet::test {

/// A test that runs once for each SIMD target that the processor has; instantiate it with
/// each_simd_target() and simd_target_name.
class SimdTargetTest : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam()); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

inline auto each_simd_target() { return testing::ValuesIn(hwy::SupportedAndGeneratedTargets()); }

inline std::string simd_target_name(const testing::TestParamInfo<int64_t>& target) {
  return hwy::TargetName(target.param);
}

}  // namespace ringlet::test
