#include "data/hdf5_handle.h"

#include <fmt/core.h>

#include "kernels/check.h"

namespace ringlet {

namespace {

// the first entry from the inside is the reason, the others tell the way out
herr_t take_reason(unsigned depth, const H5E_error2_t* entry, void* reason) {
  if (depth == 0 && entry->desc != nullptr) *static_cast<std::string*>(reason) = entry->desc;
  return 0;
}

[[noreturn]] void fail_in_hdf5(const std::string& act, const std::string& path) {
  std::string reason = "the HDF5 library refuses";
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_reason, &reason);
  throw Error(fmt::format("cannot {} {}: {}", act, path, reason),
              act == "read" ? "The file is damaged; make the corpus again."
                            : "Check the room on that disk, and who may write there.");
}

}  // namespace

Hdf5Handle::Hdf5Handle(hid_t id, Close close, const std::string& act, const std::string& path)
    : id_(id), close_(close) {
  if (id < 0) fail_in_hdf5(act, path);
}

void check_hdf5(herr_t status, const std::string& act, const std::string& path) {
  if (status < 0) fail_in_hdf5(act, path);
}

void quieten_hdf5() {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  H5PLset_loading_state(0);
}

}  // namespace ringlet
