#include "train/window_share.h"

#include <gtest/gtest.h>

#include <set>

namespace ringlet {
namespace {

TEST(WindowShareTest, EveryWindowOfAStepGoesToExactlyOneRing) {
  for (const int64_t rings : {1, 2, 3, 8}) {
    for (const int64_t batch : {1, 2, 5, 8, 13}) {
      for (int64_t step = 0; step < 3; ++step) {
        std::multiset<int64_t> cursors;
        for (int64_t ring = 0; ring < rings; ++ring) {
          const WindowShare share{batch, rings, ring};
          for (int64_t j = 0; j < share.per_step(); ++j) {
            cursors.insert(share.cursor(step * share.per_step() + j, 100));
          }
        }
        std::multiset<int64_t> expected;
        for (int64_t i = 0; i < batch; ++i) expected.insert(100 + step * batch + i);
        EXPECT_EQ(cursors, expected) << rings << " rings, " << batch << " windows";
      }
    }
  }
}

}  // namespace
}  // namespace ringlet
