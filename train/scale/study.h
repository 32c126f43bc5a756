#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/scale/cells.h"
#include "train/scale/fit.h"

namespace ringlet {

/// Peak bytes = a + b T / ring, over the lengths at which memory is fullest at the same moment of a step. Memory is the largest
/// of such lines: each moment has its own, and which is the largest changes with the length.
struct MemoryFit {
  std::string moment;
  std::vector<double> lengths{};  // ascending
  PolynomialFit fit{};            // empty: one length
};

/// The cells of one number of ranks along the length.
struct FitsOfRanks {
  int64_t ranks = 0;
  std::vector<double> lengths{};    // of the measured cells, ascending
  PolynomialFit time{};             // p10 of step ms = a + b T + c T^2: what else the machine does only adds to a step
  std::vector<MemoryFit> memory{};  // by length
};

/// A study worked out: cells, each of all its visits, in the order of the table, with what follows from several of them.
struct Study {
  StudySettings settings;
  std::vector<Cell> cells;
  std::vector<FitsOfRanks> fits;  // by ranks
  std::string mode() const;
  std::string title() const;  // one line: what was measured of which model, where
};

/// Fills in the columns that compare cells.
///   strong: model FLOP/s for each core that computes, over that of the fewest ranks with the same T;
///   weak: the same beside the fewest ranks with the same tokens per rank;
///   ideal: one rank's attention time, shared out over the cores, over attention and waits for the ring here.
/// Ranks that share cores are not expected to be faster than the cores: 100 % is what a free ring would reach.
Study make_study(CellsOfStudy read);

/// For people: tables of at most 120 columns, the cells without a measurement and why, the fits.
std::string to_text(const Study& study);

/// study.json.
nlohmann::ordered_json to_json(const Study& study);

/// "4k" for 4096 and the like; other numbers as they are.
std::string length_text(double tokens);

/// a, b, c with their units, and the residuals at each point.
std::string time_fit_text(const FitsOfRanks& fits);
/// A line or two for each moment.
std::string memory_fit_text(const FitsOfRanks& fits);

}  // namespace ringlet
