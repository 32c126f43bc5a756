#pragma once

#include <string>

#include "train/config.h"
#include "train/rank_process.h"
#include "train/world.h"

namespace ringlet {

/// What has to be the same in every process of a run, as text, a line for each setting: the resolved config, the
/// corpus and the step that it begins with.
std::string agreement_of(const Config& config, const std::string& corpus_fingerprint, int64_t first_step);

/// Throws Error that names the first difference between this rank's agreement and rank 0's.
void check_agreement(int rank, const std::string& own, const std::string& of_rank_0);

/// Runs one rank in this process, on a GPU of its own, connected with the other processes over NCCL: they meet at
/// process.address, compare their agreements, and form a world and rings as run_world() does. Returns when this
/// rank has returned. Throws what the rank threw, with its number where it is not alone: also when others fail, do
/// not come or do not answer within run.timeout_seconds, when NCCL is not installed, and when two ranks have the
/// same GPU. Half a minute after a failure it comes back in any case: a rank that is stuck is left behind on its
/// thread, and the program should leave through std::_Exit.
void run_nccl_rank(const Config& config, const RankProcess& process, const std::string& agreement,
                   const RankMain& rank_main);

}  // namespace ringlet
