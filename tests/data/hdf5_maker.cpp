#include "tests/data/hdf5_maker.h"

namespace ringlet::test {

namespace {

Hdf5Handle create(const std::string& path, Hdf5Maker::Superblock superblock) {
  const Hdf5Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "make", path);
  if (superblock == Hdf5Maker::Superblock::with_checksums) {
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  }
  return {H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access), H5Fclose, "make", path};
}

}  // namespace

Hdf5Maker::Hdf5Maker(const std::string& path, Superblock superblock)
    : path_(path), file_(create(path, superblock)) {}

void Hdf5Maker::add(const char* name, const std::vector<int64_t>& values,
                    const Storage& storage) const {
  const hsize_t count = values.size();
  const Hdf5Handle space(H5Screate_simple(1, &count, nullptr), H5Sclose, "make", path_);
  const Hdf5Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "make", path_);
  if (storage.chunk > 0) H5Pset_chunk(creation, 1, &storage.chunk);
  if (storage.shuffle) H5Pset_shuffle(creation);
  if (storage.deflate > 0) H5Pset_deflate(creation, unsigned(storage.deflate));
  if (storage.fletcher32) H5Pset_fletcher32(creation);
  const Hdf5Handle dataset(
      H5Dcreate2(file_, name, storage.type, space, H5P_DEFAULT, creation, H5P_DEFAULT), H5Dclose,
      "make", path_);
  check_hdf5(H5Dwrite(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
             "make", path_);
}

void Hdf5Maker::add_integer(const char* name, int64_t value) const {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "make", path_);
  const Hdf5Handle attribute(
      H5Acreate2(file_, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, "make",
      path_);
  H5Awrite(attribute, H5T_NATIVE_INT64, &value);
}

void Hdf5Maker::add_text(const char* name, const std::string& value) const {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose, "make", path_);
  const Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose, "make", path_);
  H5Tset_size(type, value.size() + 1);
  const Hdf5Handle attribute(H5Acreate2(file_, name, type, space, H5P_DEFAULT, H5P_DEFAULT),
                             H5Aclose, "make", path_);
  H5Awrite(attribute, type, value.c_str());
}

void set_integer(hid_t file, const char* name, int64_t value) {
  const Hdf5Handle attribute(H5Aopen(file, name, H5P_DEFAULT), H5Aclose, "open", name);
  check_hdf5(H5Awrite(attribute, H5T_NATIVE_INT64, &value), "change", name);
}

}  // namespace ringlet::test
