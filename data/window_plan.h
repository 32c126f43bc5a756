#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace ringlet {

/// A range of at most T consecutive tokens of a corpus, and where its documents begin.
struct Window {
  int64_t index = 0;
  int64_t first_token = 0, token_count = 0;
  /// Positions in the window, ascending, from 0. Where the window is padded, token_count is one of
  /// them.
  std::vector<int64_t> document_starts;
};

/// How a corpus is cut into windows of T tokens: each token is in exactly one. Documents go in
/// order; one of at most T tokens is never cut: where it does not fit any more, the window ends
/// (the rest is padding) and the next one begins. A longer one begins where the window stands and
/// is cut at the windows' ends. Memory: 8 bytes per 256 windows. A lookup walks at most 255
/// windows.
class WindowPlan {
 public:
  /// `document_offsets` (as in Corpus) must outlive the plan. Throws Error when there are fewer
  /// than T tokens.
  WindowPlan(std::span<const int64_t> document_offsets, int64_t window_tokens);
  int64_t window_tokens() const { return window_tokens_; }
  int64_t window_count() const { return window_count_; }
  Window window(int64_t index) const;
  /// As above, in the memory that `window` has.
  void window(int64_t index, Window& window) const;
  struct Tokens {
    int64_t first, count;
  };
  Tokens tokens(int64_t index) const;

 private:
  static constexpr int64_t kAnchorWindows = 256;
  int64_t end_of(int64_t first_token, size_t& document) const;

  std::span<const int64_t> offsets_;
  int64_t window_tokens_, window_count_ = 0;
  std::vector<int64_t> anchors_;  // first token of windows 0, 256, 512, ...
};

}  // namespace ringlet
