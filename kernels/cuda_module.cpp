#include "kernels/cuda_module.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

namespace ringlet {
namespace {

namespace fs = std::filesystem;

constexpr const char* kBuild = "cmake --build --preset cuda";

/// Nothing of a refused library is in use: it is closed again.
CudaModule refuse(void* library, std::string trouble) {
  dlclose(library);
  return {nullptr, std::move(trouble)};
}

}  // namespace

std::string cuda_module_path() {
  std::error_code failure;
  const fs::path program = fs::read_symlink("/proc/self/exe", failure);
  return program.parent_path() / "libringlet_cuda.so";
}

CudaModule open_cuda_module(const std::string& path) {
  std::error_code failure;
  if (!fs::exists(path, failure)) {
    return {nullptr, "module not built (cmake --preset cuda)"};
  }
  // Ranks that share a GPU have a stream each. With the driver's eight queues some of them would share
  // one, and wait for each other. Read when the first device is opened.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
  // Everything is resolved here, so that a missing library is a message and not a later crash.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    return {nullptr, fmt::format("module cannot be loaded: {} ({})", dlerror(), kBuild)};
  }
  const auto entry = reinterpret_cast<CudaModuleEntry>(dlsym(library, kCudaModuleEntry));
  if (entry == nullptr) {
    return refuse(library, fmt::format("{} is no CUDA module of Ringlet ({})", path, kBuild));
  }
  const CudaInterface* interface = entry();
  const int32_t version = interface->version;
  if (version != kCudaInterfaceVersion) {
    return refuse(library, fmt::format("module has interface {}, this program needs {} ({})",
                                       version, kCudaInterfaceVersion, kBuild));
  }
  return {interface, ""};
}

}  // namespace ringlet
