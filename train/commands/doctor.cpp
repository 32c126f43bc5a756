#include "train/commands/doctor.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sched.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matmul.h"
#include "train/console.h"

namespace ringlet {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

/// What follows "key ... :" in a file of /proc; empty when it is not there.
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

Finding processor() {
  std::string model = field_of("/proc/cpuinfo", "model name");
  cpu_set_t allowed;
  const bool known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
  const std::string cores = known ? fmt::format("{} cores", CPU_COUNT(&allowed)) : "cores unknown";
  return {"processor", (model.empty() ? "unknown" : model) + ", " + cores, ""};
}

Finding instructions() {
  const std::string name = cpu_isa_name();
  const bool fast = name.find("AVX") != std::string::npos;
  return {"instructions", name,
          fast ? "" : "without AVX2 or AVX-512 training is several times slower"};
}

Finding matrix_products() {
  return {"matrix products", "OpenBLAS for " + cpu::matmul_core(), cpu::matmul_warning()};
}

Finding memory() {
  const double total = std::atof(field_of("/proc/meminfo", "MemTotal").c_str()) * 1024;
  const double free = std::atof(field_of("/proc/meminfo", "MemAvailable").c_str()) * 1024;
  return {"memory", fmt::format("{}, {} available", human_bytes(total), human_bytes(free)),
          free >= kGiB ? "" : "less than 1 GiB is available: close other programs"};
}

Finding disk() {
  std::error_code failure;
  const auto space = std::filesystem::space(".", failure);
  if (failure)
    return {"disk", "unknown: " + failure.message(), "work in a folder that can be read"};
  const auto free = double(space.available);
  return {"disk", human_bytes(free) + " free here",
          free >= kGiB ? "" : "less than 1 GiB is free: corpora and checkpoints may not fit"};
}

Finding cuda_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return {"CUDA driver", "none; training runs on the CPU", ""};
  dlclose(library);
  return {"CUDA driver", "present; this build trains on the CPU", ""};
}

}  // namespace

std::vector<Finding> examine_machine() {
  return {processor(), instructions(), matrix_products(), memory(), disk(), cuda_driver()};
}

void doctor(OutputFormat format) {
  const std::vector<Finding> findings = examine_machine();
  if (format == OutputFormat::json) {
    nlohmann::ordered_json json = nlohmann::ordered_json::array();
    for (const auto& [name, value, advice] : findings) {
      json.push_back({{"name", name}, {"value", value}, {"advice", advice}});
    }
    using Json = nlohmann::ordered_json;
    fmt::print("{}\n",
               Json{{"findings", json}}.dump(-1, ' ', false, Json::error_handler_t::replace));
    return;
  }
  for (const auto& [name, value, advice] : findings) {
    fmt::print("{:<16} {}\n", name, value);
    if (!advice.empty()) fmt::print("{:<16} missing: {}\n", "", advice);
  }
}

}  // namespace ringlet
