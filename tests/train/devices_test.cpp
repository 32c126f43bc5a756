#include "train/devices.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <thread>
#include <vector>

#include "kernels/use_all_cores.h"
#include "train/world.h"

namespace ringlet::test {
namespace {

cpu_set_t cores_of_this_thread() {
  cpu_set_t cores;
  EXPECT_EQ(sched_getaffinity(0, sizeof cores, &cores), 0);
  return cores;
}

TEST(DevicesTest, ARanksThreadsArePinnedBehindThoseOfTheRanksBefore) {
  Config::Run run;
  run.threads_per_rank = 1;
  run.pin_threads = true;
  const Devices pinned(DeviceKind::cpu, host_threads(run));
  EXPECT_NE(pinned.name().find("1 pinned thread a rank"), std::string::npos) << pinned.name();
  const cpu_set_t all = cores_of_this_thread();
  std::vector<size_t> cores;
  for (size_t core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &all)) cores.push_back(core);
  }
  for (int rank = 0; rank < 3; ++rank) {
    std::thread([&] {
      Trace trace;
      const auto device = pinned.make(rank, 3, 1 << 20, trace);
      const cpu_set_t now = cores_of_this_thread();
      EXPECT_EQ(CPU_COUNT(&now), 1);
      EXPECT_TRUE(CPU_ISSET(cores[size_t(rank) % cores.size()], &now)) << rank;
      std::thread([&] {  // as those that read ahead
        use_all_cores();
        const cpu_set_t own = cores_of_this_thread();
        EXPECT_TRUE(CPU_EQUAL(&own, &all));
      }).join();
    }).join();
  }
  run.pin_threads = false;
  EXPECT_EQ(Devices(DeviceKind::cpu, host_threads(run)).name().find("pinned"), std::string::npos);
}

}  // namespace
}  // namespace ringlet::test
