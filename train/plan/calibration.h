#pragma once

#include <filesystem>
#include <optional>

#include "train/devices.h"
#include "train/plan/dry_run.h"

namespace ringlet {

/// Measures these devices with the config's own model: steps of one layer at several lengths through the trainer's own
/// parts, every operation timed, as many ranks at once as fill the cores (one on each GPU); attention on long keys;
/// messages between two ranks; with memory.offload copies to there and back. Ten seconds or more for small models, up to
/// three times that where equal calls differ by more than a tenth; one of width 1024 takes minutes.
Rates calibrate(const Config& config, const GptConfig& gpt, const Devices& devices);

/// Rates are kept in a file for each device (Devices::rates_name), under $XDG_CACHE_HOME/ringlet or
/// ~/.cache/ringlet. New sizes are added to those that are there, sizes measured again replace them.
std::filesystem::path rates_file(std::string device);
/// Absent when the device was never calibrated, or by another version. Throws Error for a file that is damaged.
std::optional<Rates> load_rates(const std::string& device);
void save_rates(const Rates& rates);

}  // namespace ringlet
