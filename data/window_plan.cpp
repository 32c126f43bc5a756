#include "data/window_plan.h"

#include <fmt/core.h>

#include <algorithm>

#include "kernels/check.h"

namespace ringlet {

WindowPlan::WindowPlan(std::span<const int64_t> document_offsets, int64_t window_tokens)
    : offsets_(document_offsets), window_tokens_(window_tokens) {
  CHECK(window_tokens >= 1 && offsets_.size() >= 2, "windows of ", window_tokens, " tokens");
  const int64_t token_count = offsets_.back();
  if (token_count < window_tokens) {
    throw Error(fmt::format("the corpus has {} tokens, a window needs {}", token_count, window_tokens),
                "Choose shorter windows (run.seq_len, --seq-len), or prepare more text.");
  }
  size_t document = 0;
  for (int64_t first = 0; first < token_count; first = end_of(first, document)) {
    if (window_count_ % kAnchorWindows == 0) anchors_.push_back(first);
    ++window_count_;
  }
}

/// `document` is where the search begins, not behind the window's first; then the one in which it
/// ends.
int64_t WindowPlan::end_of(int64_t first_token, size_t& document) const {
  const int64_t end = first_token + window_tokens_;
  if (end >= offsets_.back()) return offsets_.back();
  // steps that double: cheap for many short documents and for few long ones
  size_t step = 1;
  while (document + step < offsets_.size() && offsets_[document + step] <= end) {
    document += step;
    step *= 2;
  }
  const auto last = offsets_.begin() + std::ptrdiff_t(std::min(document + step, offsets_.size()));
  const auto behind = std::upper_bound(offsets_.begin() + std::ptrdiff_t(document), last, end);
  document = size_t(behind - offsets_.begin()) - 1;
  const int64_t start = offsets_[document], next = offsets_[document + 1];
  // a document that the end would cut stays out, if some window can hold it whole
  return start > first_token && next - start <= window_tokens_ ? start : end;
}

WindowPlan::Tokens WindowPlan::tokens(int64_t index) const {
  CHECK(index >= 0 && index < window_count_, "window ", index, " of ", window_count_);
  int64_t first = anchors_[size_t(index / kAnchorWindows)];
  const auto behind = std::upper_bound(offsets_.begin(), offsets_.end(), first);
  size_t document = size_t(behind - offsets_.begin()) - 1;
  for (int64_t i = index / kAnchorWindows * kAnchorWindows; i < index; ++i) {
    first = end_of(first, document);
  }
  return {first, end_of(first, document) - first};
}

Window WindowPlan::window(int64_t index) const {
  Window result;
  window(index, result);
  return result;
}

void WindowPlan::window(int64_t index, Window& window) const {
  const auto [first, count] = tokens(index);
  window.index = index;
  window.first_token = first;
  window.token_count = count;
  window.document_starts.assign(1, 0);
  auto start = std::upper_bound(offsets_.begin(), offsets_.end(), first);
  for (; start != offsets_.end() && *start < first + count; ++start) {
    window.document_starts.push_back(*start - first);
  }
  if (count < window_tokens_) window.document_starts.push_back(count);
}

}  // namespace ringlet
