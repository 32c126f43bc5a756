#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/corpus.h"
#include "data/window_plan.h"
#include "kernels/tensor.h"

namespace ringlet {

/// The rows of a window that one rank holds.
struct Batch {
  Window window;                // the same on all ranks
  std::vector<int32_t> tokens;  // 0 in padding
  /// The next token of the same document, end_of_document behind its last one, -1 in padding, and
  /// where the corpus has answers -1 before all other tokens.
  std::vector<int32_t> labels;
};

/// Gives the windows of a corpus, piece by piece. Immutable; any number of threads may read.
class WindowReader {
 public:
  /// `corpus` must outlive the reader. Throws Error when it has fewer than `window_tokens` tokens.
  WindowReader(const Corpus& corpus, int64_t window_tokens);
  const Corpus& corpus() const { return corpus_; }
  const WindowPlan& plan() const { return plan_; }
  /// How many labels of a window count.
  int64_t label_count(int64_t window_index) const;
  /// The rows of `pieces` (positions in the window), in their order. Reads no more than these and
  /// the next token of each; of a strided piece, the range that it spans. Throws Error for a
  /// damaged corpus.
  Batch read(int64_t window_index, std::span<const Piece> pieces) const;
  /// As above, in the memory that `batch` has.
  void read(int64_t window_index, std::span<const Piece> pieces, Batch& batch) const;

 private:
  void read_piece(const Piece& piece, Batch& batch) const;

  const Corpus& corpus_;
  WindowPlan plan_;
};

}  // namespace ringlet
