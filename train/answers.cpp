#include "train/answers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/host_values.h"

namespace ringlet {
namespace {

/// Of values that are 0 or 1.
MeanLoss share_of(int64_t count, int64_t right) {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  const double share = count == 0 ? kUnknown : double(right) / double(count);
  return {count, share, count < 2 ? kUnknown : std::sqrt(share * (1 - share) / double(count - 1))};
}

bool is_largest_alone(std::span<const float> logits, int32_t label) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (int64_t(i) != label && !(logits[i] < logits[size_t(label)])) return false;  // so is NaN
  }
  return true;
}

}  // namespace

AnswerScores::AnswerScores(const Corpus& corpus, std::span<const double> right) {
  struct Count {
    int64_t answers = 0, right = 0;
  };
  std::vector<Count> bins;
  Count all;
  const auto right_in = [&](int64_t first, int64_t end) {
    return std::ranges::count_if(right.subspan(size_t(first), size_t(end - first)),
                                 [](double mark) { return mark > 0; });
  };
  for (int64_t first = 0; first < std::ssize(right);) {
    const int64_t end = corpus.answer_end(first);
    if (end > std::ssize(right)) break;
    const auto bin = size_t(std::bit_width(uint64_t(corpus.answer_distances()[size_t(first)])));
    if (bins.size() <= bin) bins.resize(bin + 1);
    const bool whole = right_in(first, end) == end - first;
    for (Count* count : {&bins[bin], &all}) {
      count->answers += 1;
      count->right += whole;
    }
    first = end;
  }
  tokens_ = share_of(std::ssize(right), right_in(0, std::ssize(right)));
  answers_ = share_of(all.answers, all.right);
  for (size_t bin = 0; bin < bins.size(); ++bin) {
    if (by_distance_.empty() && bins[bin].answers == 0) continue;
    const int64_t first = int64_t{1} << (bin - 1);  // no distance is 0
    by_distance_.push_back({first, 2 * first - 1, share_of(bins[bin].answers, bins[bin].right)});
  }
}

std::vector<double> marks_of(const WindowReader& reader, int64_t window_count) {
  const auto answers = reader.corpus().answers();
  if (answers.empty() || window_count == 0) return {};
  const Window last = reader.plan().window(window_count - 1);
  // windows hold all tokens before their end, and labels are those behind them
  const auto end = std::ranges::upper_bound(answers, last.first_token + last.token_count);
  return std::vector<double>(size_t(end - answers.begin()));
}

void mark_right_answers(const Corpus& corpus, const Batch& batch, std::span<const Piece> pieces,
                        int64_t first_row, const DeviceLogits& logits, std::span<double> marks) {
  const auto answers = corpus.answers();
  const int64_t end_row = first_row + logits.values.rows();
  for (const Piece& piece : pieces) {
    const int64_t first = std::max(first_row, piece.first_row),
                  end = std::min(end_row, piece.first_row + piece.row_count);
    for (int64_t row = first; row < end; ++row) {
      const int32_t label = batch.labels[size_t(row)];
      if (label < 0) continue;
      const std::vector<float> values =
          host_values(logits.device, logits.values.slice(row - first_row, 1));
      const int64_t token = batch.window.first_token + piece.position(row - piece.first_row) + 1;
      const auto answer = std::ranges::lower_bound(answers, token) - answers.begin();
      marks[size_t(answer)] = is_largest_alone(values, label) ? 1 : 0;
    }
  }
}

}  // namespace ringlet
