#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "model/gpt.h"

namespace ringlet::test {

using ValuesByName = std::map<std::string, std::vector<float>>;

/// Makes the device of a rank: the CPU backend, or a decorated one.
using MakeBackend = std::function<std::unique_ptr<Backend>(int64_t arena_bytes, Trace& trace)>;
std::unique_ptr<Backend> plain_backend(int64_t arena_bytes, Trace& trace);
/// A CPU backend whose operations run late, on another thread (tests/support/deferred_backend.h).
std::unique_ptr<Backend> late_backend(int64_t arena_bytes, Trace& trace);

/// One training step's worth of model: all tokens of one window, in global order.
struct ModelCase {
  GptConfig config;
  StepSettings settings;
  Layout layout = Layout::zigzag;
  int ring_size = 1;
  Mask mask;
  std::vector<int32_t> tokens, labels;
  ValuesByName weights;
  float gradient_scale = 1;
};

struct ModelResult {
  std::vector<float> losses;  // by global position
  ValuesByName gradients;      // summed over the ring
  std::vector<int64_t> peak_bytes;  // of each rank's arena, above its parameters
};

/// Forward and backward on a ring of threads; evaluate: forward only, no gradients.
ModelResult run_model(const ModelCase& model_case, const MakeBackend& make_backend = plain_backend);
std::vector<float> evaluate_model(const ModelCase& model_case,
                                  const MakeBackend& make_backend = plain_backend);

/// Random tokens and labels for a case; every seventh label is -1.
void fill_tokens(ModelCase& model_case, int64_t length, uint64_t seed);

/// This rank's part of values in global order, and back.
template <class T>
std::vector<T> take_rows(const std::vector<T>& whole, const std::vector<Piece>& pieces) {
  std::vector<T> rows;
  for (const Piece& piece : pieces) {
    for (int64_t i = 0; i < piece.row_count; ++i) rows.push_back(whole[piece.position(i)]);
  }
  return rows;
}

template <class T>
void put_rows(const std::vector<T>& rows, const std::vector<Piece>& pieces, std::vector<T>& whole) {
  for (const Piece& piece : pieces) {
    for (int64_t i = 0; i < piece.row_count; ++i) {
      whole[piece.position(i)] = rows[piece.first_row + i];
    }
  }
}

}  // namespace ringlet::test
