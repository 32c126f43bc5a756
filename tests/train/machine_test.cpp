#include "train/machine.h"

#include <gtest/gtest.h>

namespace ringlet::test {
namespace {

TEST(MachineTest, AContainersShareOfTimeIsSoManyCores) {
  EXPECT_EQ(cores_of_quota("200000 100000", 64), 2);
  EXPECT_EQ(cores_of_quota("150000 100000", 64), 2);  // a core and a half keep two threads busy
  EXPECT_EQ(cores_of_quota("5000 100000", 64), 1);
  EXPECT_EQ(cores_of_quota("900000 100000", 4), 4);
  for (const char* unlimited : {"max 100000", "", "-1 100000", "100000", "100000 0"}) {
    EXPECT_EQ(cores_of_quota(unlimited, 64), 64) << unlimited;
  }
}

}  // namespace
}  // namespace ringlet::test
