#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "train/profile/recording.h"

namespace ringlet {

/// Writes rank_0.json, rank_1.json, ... into `folder`, for Holistic Trace Analysis and for Perfetto, and all_ranks.json into
/// its subfolder perfetto/, where one view shows all ranks and the arrows between them. Returns the bytes of the largest.
/// One event a line, in the JSON form of Chrome's trace events: complete events (X) of a thread nest, thread 1 computes, on 2
/// messages leave, on 3 they arrive, on 4 collectives go; where two of a kind travel at once the second has a thread of its
/// own. What counts as device work (args.stream) is named for what trace analysers tell apart by name: communication
/// ncclDevKernel_..., host copies Memcpy..., all else is compute. Times are whole microseconds.
/// Throws Error when a file cannot be written.
int64_t write_traces(const Recording& recording, const std::string& layout, const std::filesystem::path& folder);

}  // namespace ringlet
