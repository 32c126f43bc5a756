#pragma once

#include <filesystem>
#include <memory>

#include "kernels/offload.h"
#include "kernels/trace.h"

namespace ringlet {

/// A file without a name of `bytes` bytes in `folder`, allocated at once and gone with the object, and a thread that
/// reads and writes it. Throws Error when there is no such folder or not that much room. trace: of the rank, whose
/// waits for the disk are signs of life; must outlive this.
std::unique_ptr<Offload> make_file_offload(const std::filesystem::path& folder, int64_t bytes, Trace& trace);

}  // namespace ringlet
