#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "train/scale/cells.h"
#include "train/scale/fit.h"

namespace ringlet {

/// The cells of one number of ranks along the length.
struct FitsOfRanks {
  int64_t ranks = 0;
  std::vector<double> lengths{};  // of the measured cells, ascending
  PolynomialFit time{};           // step ms = a + b T + c T^2
  PolynomialFit memory{};         // peak bytes = a + b T / ring
};

/// A study worked out: cells in the order of the table, with what follows from several of them.
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
Study make_study(CellsOfStudy cells);

/// For people: tables of at most 120 columns, the cells without a measurement and why, the fits.
std::string to_text(const Study& study);

/// study.json.
nlohmann::ordered_json to_json(const Study& study);

/// "4k" for 4096 and the like; other numbers as they are.
std::string length_text(double tokens);

/// a, b, c with their units, and the residuals at each point.
std::string time_fit_text(const FitsOfRanks& fits);
std::string memory_fit_text(const FitsOfRanks& fits);

}  // namespace ringlet
