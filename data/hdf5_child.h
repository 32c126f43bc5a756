#pragma once

#include <functional>

#include "data/corpus_facts.h"
#include "kernels/check.h"

namespace ringlet {

using FactWork = std::function<CorpusFacts()>;

/// Runs `work` in a forked child with 512 MiB more memory than now and some seconds of computing,
/// and returns what it returned. All use of the HDF5 library happens so: a damaged or hostile file
/// may crash or hang it, and a full disk may, but not this program. The library is never in use
/// here, so it is whole in every child. Throws the child's Error, or `crashed` when it ended
/// without an answer. Costs a few milliseconds.
CorpusFacts run_hdf5_child(int64_t cpu_seconds, const Error& crashed, const FactWork& work);

}  // namespace ringlet
