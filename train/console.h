#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "train/metrics.h"

namespace ringlet {

/// A text on standard error. Where it does not arrive, a closed pipe or a full disk, the work goes on all the same.
void print_error(std::string_view text);

/// 41.2k, 3.5M; 1.5 GiB; 3m12s: numbers for people.
std::string human_count(double count);
std::string human_bytes(double bytes);
std::string human_seconds(double seconds);

/// Columns side by side, the first flush left, the others flush right. The first row is the
/// heading.
std::string format_table(const std::vector<std::vector<std::string>>& rows);

/// "[12/1000] loss 1.913 (first 1/4 2.31, last 1/4 1.78) lr 1e-03 norm 0.52 41.2k tokens/s ETA
/// 3m12s", of the stage where there are some; eta_seconds below zero: not known yet.
std::string progress_text(const MetricsRecord& record, double eta_seconds);

/// Where rank 0 tells the user how things go: one live line on a terminal, plain lines elsewhere.
/// Messages and progress go to `stream`, which is stderr unless a test wants another.
class Console {
 public:
  explicit Console(std::FILE* stream = stderr);
  /// Ends the live line.
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  /// A step is done. On a terminal the live line is drawn anew; elsewhere a line is printed.
  void progress(const MetricsRecord& record);
  /// A line that stays.
  void say(std::string_view line);

 private:
  void draw();

  std::FILE* const stream_;
  const bool terminal_;
  double mean_step_ms_ = 0;  // of the stage
  int64_t stage_ = 0;
  std::string live_;
};

}  // namespace ringlet
