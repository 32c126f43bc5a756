#pragma once

#include <array>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/sequence_layout.h"

namespace ringlet::bench {

inline constexpr std::array kRingSizes{1, 2, 4, 8, 16, 32, 64};
inline constexpr std::array kQuantities{"O", "LSE", "dQ", "dK", "dV"};
/// What an error of Ringlet's on the largest ring may be, relative to that on a ring of one.
inline constexpr double kGrowthBar = 1.2;

enum class Origin { ringlet, emulated_peer };

/// A way to run the ring, and the relative RMS error that it has.
struct Scheme {
  std::string name, key;
  Origin origin;
  std::vector<std::array<double, kQuantities.size()>> errors;  // by ring size

  /// Error on the largest ring relative to that on a ring of one.
  double growth(size_t quantity) const {
    return errors.back()[quantity] / errors.front()[quantity];
  }
};

/// What was measured, on what, how.
struct RingErrorReport {
  HeadShape shape;
  int64_t length;
  Layout layout;
  std::string date, processor, command;
  std::vector<Scheme> schemes;

  /// Whether every error of Ringlet's keeps to kGrowthBar; one that is not a number does not.
  bool holds() const;
};

/// Tables of all errors and of their growth, which comes last. They are Markdown and read well as
/// text too.
std::string to_tables(const RingErrorReport& report);
/// A page with the tables. `picture`: name of the SVG beside it, or empty.
std::string to_markdown(const RingErrorReport& report, const std::string& picture);
std::string to_json(const RingErrorReport& report);
/// The error of O over the ring size.
std::string to_svg(const RingErrorReport& report);

}  // namespace ringlet::bench
