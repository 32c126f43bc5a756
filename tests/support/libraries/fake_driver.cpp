// libcuda.so.1 of a machine whose driver is there, but too old or without a GPU. The environment says which.
#include <cstdint>
#include <cstdlib>
#include <string_view>

namespace {

constexpr int kNotFound = 500;  // CUDA_ERROR_NOT_FOUND

int number(const char* variable) {
  const char* text = std::getenv(variable);
  return text == nullptr ? 0 : std::atoi(text);
}

}  // namespace

extern "C" {

int cuDriverGetVersion(int* version) {
  *version = number("FAKE_DRIVER_VERSION");
  return 0;
}

int cuInit(unsigned) { return number("FAKE_DRIVER_STATUS"); }

/// How the runtime finds every function of the driver.
int cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int*) {
  const std::string_view name = symbol;
  *function = nullptr;
  if (name == "cuInit") *function = reinterpret_cast<void*>(cuInit);
  if (name == "cuDriverGetVersion") *function = reinterpret_cast<void*>(cuDriverGetVersion);
  if (name == "cuGetProcAddress") *function = reinterpret_cast<void*>(cuGetProcAddress_v2);
  return *function == nullptr ? kNotFound : 0;
}

}  // extern "C"
