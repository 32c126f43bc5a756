#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "train/plan/plan.h"

namespace ringlet {

/// The parts of a plan for people: each a few lines, without a line break at the end.
std::string memory_text(const DryRun& run, const Plan& plan, const Rates* rates);
std::string knobs_text(const std::vector<Knob>& knobs);
std::string work_text(const DryRun& run, const Plan& plan);
std::string overlap_text(const DryRun& run, const Plan& plan, const Rates& rates);
/// Hop by hop of the timed rank that ends last: compute, exposed waits, bytes.
std::string timeline_text(const DryRun& run, const Plan& plan, const Rates& rates);

nlohmann::ordered_json to_json(const DryRun& run, const Plan& plan, const std::vector<Knob>& knobs, const Rates* rates);

}  // namespace ringlet
