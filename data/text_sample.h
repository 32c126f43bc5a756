#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ringlet {

/// A sample of a text of any length, spread over all of it: up to 256 parts of 64 KiB, each as
/// likely as any other (reservoir sampling with fixed numbers: equal texts give equal samples).
/// Source: Vitter, "Random Sampling with a Reservoir" (1985), algorithm R.
class TextSample {
 public:
  void append(std::string_view text);
  void end_document();
  /// The sample in lines of at most 4 KiB, with their newlines.
  std::vector<std::string> lines() const;

 private:
  void take();

  std::string waiting_;
  std::vector<std::string> parts_;
  int64_t seen_ = 0;
};

}  // namespace ringlet
