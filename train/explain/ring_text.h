#pragma once

#include <span>
#include <string>

#include "train/explain/ring_picture.h"

namespace ringlet {

/// Rings of one length, size and mask, layout by layout, for a terminal of 100 columns: who holds which positions, what
/// each rank has in hand, computes and sends at each hop, the work of each rank as bars, and what it means in words.
/// token_bytes: keys and values of one token; 0: not known.
std::string to_text(std::span<const RingPicture> pictures, int64_t token_bytes);

}  // namespace ringlet
