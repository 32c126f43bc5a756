#include "train/machine.h"

#include <fmt/format.h>
#include <malloc.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include "kernels/cpu/cpu_backend.h"

namespace ringlet {

std::string field_of(const char* path, std::string_view key) {
  std::ifstream stream(path);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    const size_t begin =
        colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string processor_name() {
  const std::string name = field_of("/proc/cpuinfo", "model name");
  return name.empty() ? "unknown" : name;
}

std::string device_name(int threads) {
  return fmt::format("{}, {}, {} thread{}", processor_name(), cpu_isa_name(), threads, threads == 1 ? "" : "s");
}

int cores_of_quota(const std::string& cpu_max, int cores) {
  std::istringstream text(cpu_max);  // microseconds of all cores in so many of time; "max": all
  double quota = 0, period = 0;
  if (!(text >> quota >> period) || quota <= 0 || period <= 0) return cores;
  return int(std::clamp(std::ceil(quota / period), 1.0, double(std::max(1, cores))));
}

int usable_cores() {
  cpu_set_t allowed;
  const bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  const int cores = known ? CPU_COUNT(&allowed) : int(std::thread::hardware_concurrency());
  std::string cpu_max;
  std::getline(std::ifstream("/sys/fs/cgroup/cpu.max"), cpu_max);
  return cores_of_quota(cpu_max, cores);
}

int64_t physical_memory_bytes() {
  const int64_t installed = int64_t(sysconf(_SC_PHYS_PAGES)) * int64_t(sysconf(_SC_PAGESIZE));
  int64_t allowed = installed;
  std::ifstream("/sys/fs/cgroup/memory.max") >> allowed;  // of a container; "max", or no such file: all
  return allowed > 0 ? std::min(installed, allowed) : installed;
}

int64_t resident_bytes() { return 1024 * std::atoll(field_of("/proc/self/status", "VmRSS").c_str()); }

int64_t peak_resident_bytes() {
  return 1024 * std::atoll(field_of("/proc/self/status", "VmHWM").c_str());
}

void release_free_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace ringlet
