#pragma once

#include <span>
#include <string>
#include <string_view>

#include "train/explain/ring_picture.h"

namespace ringlet {

/// Rings of one length, size and mask side by side, one panel for each layout: which positions each rank holds; what its
/// queries see of each block, the hop in the block's corner; its work along the time of a ring in step. Self-contained,
/// without a background, in colours between black and white, so that either can lie under it.
std::string to_svg(std::span<const RingPicture> pictures, std::string_view title);

}  // namespace ringlet
