#include "train/commands/doctor.h"

#include <fmt/format.h>
#include <sched.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/cpu/cpu_backend.h"
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
  return {"instructions", cpu_isa_name(), cpu_isa_warning()};
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

Finding graphics_processor(size_t index, const CudaDevice& device) {
  const std::string unusable = device.trouble.empty() ? "" : "use of this GPU: " + device.trouble;
  const std::string name = fmt::format("GPU {}", index);
  if (device.name.empty()) return {name, "unknown", unusable};
  const int capability = device.compute_capability;
  std::string value = fmt::format("{}, compute capability {}.{}, {} multiprocessors, {}",
                                  device.name, capability / 10, capability % 10,
                                  device.multiprocessor_count,
                                  human_bytes(double(device.total_bytes)));
  if (device.free_bytes >= 0) {
    value += fmt::format(", {} free", human_bytes(double(device.free_bytes)));
  }
  if (!device.peers.empty()) {
    value += fmt::format(", peer access to GPU {}", fmt::join(device.peers, ", "));
  }
  return {name, value, unusable};
}

}  // namespace

std::vector<Finding> cuda_findings(const CudaModule& module) {
  const auto cuda = [](const std::string& state) {
    return Finding{"CUDA", state + "; training runs on the CPU", ""};
  };
  if (module.interface == nullptr) return {cuda(module.trouble)};
  const CudaMachine machine = module.interface->examine();
  if (!machine.trouble.empty()) return {cuda("module found, " + machine.trouble)};
  std::vector<Finding> findings{
      cuda(fmt::format("module found, driver for CUDA {}, runtime {}",
                       cuda_version_text(machine.driver_version),
                       cuda_version_text(machine.runtime_version)))};
  for (size_t i = 0; i < machine.devices.size(); ++i) {
    findings.push_back(graphics_processor(i, machine.devices[i]));
  }
  return findings;
}

std::vector<Finding> examine_machine() {
  std::vector<Finding> findings{processor(), instructions(), memory(), disk()};
  for (Finding& finding : cuda_findings(open_cuda_module())) {
    findings.push_back(std::move(finding));
  }
  return findings;
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
