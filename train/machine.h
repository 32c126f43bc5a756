#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ringlet {

/// What follows "key ... :" in a file of /proc; empty when it is not there.
std::string field_of(const char* path, std::string_view key);

/// "Intel(R) Xeon(R)", or "unknown".
std::string processor_name();

/// "AMD EPYC, AVX2, 2 threads": what rates of the CPU are true of.
std::string device_name(int threads);

/// Cores that this process may use: by its affinity, and as much time as its container has (cgroup v2).
int usable_cores();
/// Of so many cores, those that a container may keep busy: the first line of its cpu.max, as "150000 100000" (2).
int cores_of_quota(const std::string& cpu_max, int cores);

/// Memory of the machine; of this process, now and at its highest. Bytes.
int64_t physical_memory_bytes();
int64_t resident_bytes();
int64_t peak_resident_bytes();
/// Gives the system back what the heap holds and nobody uses.
void release_free_memory();

}  // namespace ringlet
