#include "train/commands/doctor.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/cpu/cpu_backend.h"
#include "train/console.h"
#include "train/machine.h"

namespace ringlet {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

Finding processor() {
  return {"processor", fmt::format("{}, {} cores", processor_name(), usable_cores()), ""};
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
    return Finding{"CUDA", state, ""};
  };
  if (module.interface == nullptr) return {cuda(module.trouble + "; training runs on the CPU")};
  const CudaMachine machine = module.interface->examine();
  if (!machine.trouble.empty()) return {cuda("module found, " + machine.trouble + "; training runs on the CPU")};
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
