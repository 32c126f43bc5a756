#include "kernels/cuda/nccl_library.h"

#include <dlfcn.h>

#include <string>

#include "kernels/check.h"

namespace ringlet::cuda {
namespace {

constexpr const char* kLibrary = "libnccl.so.2";
constexpr const char* kAdvice =
    "Install NVIDIA's package libnccl2 (2.18 or newer), or run ranks as threads of one process.";

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) throw Error(std::string(kLibrary) + " is too old: it has no " + name, kAdvice);
}

NcclFunctions load() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw Error(std::string("NCCL cannot be loaded: ") + dlerror(), kAdvice);
  NcclFunctions functions{};
  find(library, "ncclGetErrorString", functions.get_error_string);
  find(library, "ncclGetLastError", functions.get_last_error);
  find(library, "ncclGetUniqueId", functions.get_unique_id);
  find(library, "ncclCommInitRankConfig", functions.comm_init_rank_config);
  find(library, "ncclCommSplit", functions.comm_split);
  find(library, "ncclCommFinalize", functions.comm_finalize);
  find(library, "ncclCommDestroy", functions.comm_destroy);
  find(library, "ncclCommAbort", functions.comm_abort);
  find(library, "ncclCommGetAsyncError", functions.comm_get_async_error);
  find(library, "ncclCommCount", functions.comm_count);
  find(library, "ncclCommUserRank", functions.comm_user_rank);
  find(library, "ncclGroupStart", functions.group_start);
  find(library, "ncclGroupEnd", functions.group_end);
  find(library, "ncclSend", functions.send);
  find(library, "ncclRecv", functions.receive);
  find(library, "ncclAllGather", functions.all_gather);
  find(library, "ncclBroadcast", functions.broadcast);
  return functions;
}

}  // namespace

const NcclFunctions& nccl_functions() {
  static const NcclFunctions functions = load();
  return functions;
}

}  // namespace ringlet::cuda
