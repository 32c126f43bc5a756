#pragma once

#include <string>

#include "kernels/arena.h"

namespace ringlet {

/// What each region of a rank's arena held when it was fullest: a table for people, largest first.
std::string memory_table(const Arena& arena);

}  // namespace ringlet
