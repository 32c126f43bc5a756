#pragma once

#include <memory>

#include "kernels/backend.h"

namespace ringlet {

/// A Backend that computes nothing: it checks shapes and lets its Arena count bytes. Its memory is never touched; reads
/// give zeros.
std::unique_ptr<Backend> make_dry_backend(int64_t arena_bytes);

}  // namespace ringlet
