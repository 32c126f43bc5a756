#pragma once

#include <filesystem>
#include <optional>

#include "train/plan/dry_run.h"

namespace ringlet {

/// Measures this machine with the config's own model and `threads` threads a rank: steps of one layer at several lengths
/// through the trainer's own parts, every operation timed, as many ranks at once as fill the cores; attention on
/// long keys; messages between two ranks. Some ten seconds for small models; one of width 1024 takes minutes.
Rates calibrate(const Config& config, const GptConfig& gpt, int threads);

/// Rates are kept in a file for each processor, instruction set and number of threads, under $XDG_CACHE_HOME/ringlet or
/// ~/.cache/ringlet. New sizes are added to those that are there, sizes measured again replace them.
std::filesystem::path rates_file(int threads);
/// Absent when this machine was never calibrated with so many threads, or by another version. Throws Error for a file that is damaged.
std::optional<Rates> load_rates(int threads);
void save_rates(const Rates& rates, int threads);

}  // namespace ringlet
