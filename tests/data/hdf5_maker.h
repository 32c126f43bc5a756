#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/hdf5_handle.h"

namespace ringlet::test {

/// How a dataset of a hand-made file is stored.
struct Storage {
  hid_t type = H5T_STD_U16LE;
  hsize_t chunk = 0;  // 0: contiguous
  int deflate = 0;
  bool shuffle = false, fletcher32 = false;
};

/// Makes HDF5 files as other programs do, good and bad ones.
class Hdf5Maker {
 public:
  enum class Superblock { old, with_checksums };
  explicit Hdf5Maker(const std::string& path, Superblock superblock = Superblock::old);
  hid_t id() const { return file_; }
  void add(const char* name, const std::vector<int64_t>& values, const Storage& storage = {}) const;
  void add_integer(const char* name, int64_t value) const;
  void add_text(const char* name, const std::string& value) const;

 private:
  std::string path_;
  Hdf5Handle file_;
};

/// Opens a file to change it, calls `change` with its identifier, closes it.
template <class Change>
void change_hdf5(const std::string& path, const Change& change) {
  const Hdf5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT), H5Fclose, "open", path);
  change(hid_t(file));
}

/// Gives an attribute of the root another whole number.
void set_integer(hid_t file, const char* name, int64_t value);

}  // namespace ringlet::test
