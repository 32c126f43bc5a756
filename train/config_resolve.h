#pragma once

#include "train/config.h"

namespace ringlet {

/// Gives every unset value the one that follows from the others. Throws UsageError where none does.
void fill_unset(Config& config);

}  // namespace ringlet
