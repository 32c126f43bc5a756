#pragma once

#include <hdf5.h>

#include <string>
#include <utility>

namespace ringlet {

/// An HDF5 identifier that closes itself. Internal to data/, where only children of run_hdf5_child
/// use it.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);
  /// Throws Error "cannot ACT PATH: what the library says" when `id` is not one.
  Hdf5Handle(hid_t id, Close close, const std::string& act, const std::string& path);
  ~Hdf5Handle() { (void)reset(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept
      : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;
  operator hid_t() const { return id_; }
  /// Closes now; negative when that failed.
  herr_t reset() { return id_ < 0 ? 0 : close_(std::exchange(id_, -1)); }

 private:
  hid_t id_;
  Close close_;
};

/// Throws Error "cannot ACT PATH: what the library says" when status is negative.
void check_hdf5(herr_t status, const std::string& act, const std::string& path);

/// No error stacks on stderr (a setting of each thread), no plugins.
void quieten_hdf5();

}  // namespace ringlet
