#include "train/verify/spot_check.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "kernels/random.h"
#include "kernels/host_values.h"

namespace ringlet {
namespace {

// Of f32 against double on sums of any length; a lost block, a bf16 rounding or a wrong mask is far above.
constexpr double kForwardTolerance = 5e-5;
constexpr double kBackwardTolerance = 1e-3;
// Outputs, and on tensor cores the probabilities and their gradients, are rounded to bf16, 4e-3.
constexpr double kBf16ForwardTolerance = 1e-2;
constexpr double kBf16BackwardTolerance = 5e-2;
// Of a row, root mean square. Rounding to f32 gives 2e-8; an angle in f32, 1e-5 at position 1000.
constexpr double kRotaryTolerance = 2e-7;
constexpr double kVanishingNorm = 1e-2;  // of dV, below which dQ and dK are noise
constexpr double kNothing = -1e300;  // the maximum of no scores

using Vector = std::vector<double>;

double dot(const float* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += double(a[i]) * b[i];
  return sum;
}

void add_scaled(double factor, const float* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] += factor * double(from[i]);
}

/// A layer's rows of this rank on the host.
struct Rows {
  HeadShape shape;
  std::span<const Piece> pieces;
  int64_t rows;
  std::vector<float> q, kv, output, lse, dq, dkv;
  std::span<const float> d_output;

  const float* query(const std::vector<float>& values, int64_t head, int64_t row) const {
    return &values[size_t((head * rows + row) * shape.head_dim)];
  }
  const float* of_row(std::span<const float> values, int64_t head, int64_t row) const {
    return &values[size_t((row * shape.heads + head) * shape.head_dim)];
  }
  double lse_of(int64_t head, int64_t row) const { return lse[size_t(head * rows + row)]; }
  /// Keys (or their gradients) of row `row` of a piece; the values stand `plane` behind.
  const float* key(const std::vector<float>& values, int64_t head, const Piece& piece,
                   int64_t i) const {
    const int64_t base = 2 * shape.kv_heads * shape.head_dim * piece.first_row;
    return &values[size_t(base + (head * piece.row_count + i) * shape.head_dim)];
  }
  int64_t plane(const Piece& piece) const {
    return shape.kv_heads * piece.row_count * shape.head_dim;
  }
  /// body(piece, index in the piece, row, position) for every row.
  template <class Body>
  void each(const Body& body) const {
    for (const Piece& piece : pieces) {
      for (int64_t i = 0; i < piece.row_count; ++i) {
        body(piece, i, piece.first_row + i, piece.position(i));
      }
    }
  }
};

struct Sample {
  int64_t head, position;
};

/// The rows of one layer that are checked: as the ring computed them, and recomputed; sample by sample, on all ranks
/// alike.
class LayerCheck {
 public:
  using Sum = std::function<void(std::span<double>)>;  // over the ring

  LayerCheck(const Rows& own, const Mask& mask, int ring_size, int rank,
             std::vector<Sample> query_samples, std::vector<Sample> key_samples, Sum sum)
      : queries(std::move(query_samples)),
        keys(std::move(key_samples)),
        own_(own),
        mask_(mask),
        dim_(own.shape.head_dim),
        group_(own.shape.heads / own.shape.kv_heads),
        scale_(1 / std::sqrt(double(dim_))),
        ring_size_(size_t(ring_size)),
        rank_(size_t(rank)),
        sum_(std::move(sum)) {
    fetch_rows();
    recompute_outputs();
    recompute_query_gradients();
    recompute_key_gradients();
  }

  const std::vector<Sample> queries, keys;
  Vector q, d_output, output, dq, lse;  // of queries, as the ring computed them
  Vector k, v, dk, dv;                  // of keys
  Vector true_output, true_lse, true_dq, true_dk, true_dv;

 private:
  size_t at(size_t sample) const { return sample * size_t(dim_); }

  /// The samples themselves, from the ranks that hold them.
  void fetch_rows() {
    for (Vector* values : {&q, &d_output, &output, &dq}) values->resize(at(queries.size()));
    for (Vector* values : {&k, &v, &dk, &dv}) values->resize(at(keys.size()));
    lse.resize(queries.size());
    own_.each([&](const Piece& piece, int64_t i, int64_t row, int64_t position) {
      for (size_t s = 0; s < queries.size(); ++s) {
        if (queries[s].position != position) continue;
        const int64_t head = queries[s].head;
        std::copy_n(own_.query(own_.q, head, row), dim_, &q[at(s)]);
        std::copy_n(own_.query(own_.dq, head, row), dim_, &dq[at(s)]);
        std::copy_n(own_.of_row(own_.d_output, head, row), dim_, &d_output[at(s)]);
        std::copy_n(own_.of_row(own_.output, head, row), dim_, &output[at(s)]);
        lse[s] = own_.lse_of(head, row);
      }
      for (size_t s = 0; s < keys.size(); ++s) {
        if (keys[s].position != position) continue;
        const float* const key = own_.key(own_.kv, keys[s].head, piece, i);
        const float* const gradient = own_.key(own_.dkv, keys[s].head, piece, i);
        std::copy_n(key, dim_, &k[at(s)]);
        std::copy_n(key + own_.plane(piece), dim_, &v[at(s)]);
        std::copy_n(gradient, dim_, &dk[at(s)]);
        std::copy_n(gradient + own_.plane(piece), dim_, &dv[at(s)]);
      }
    });
    for (Vector* values : {&q, &d_output, &output, &dq, &lse, &k, &v, &dk, &dv}) sum_(*values);
  }

  /// body(score, key, value) for every key of this rank that the query sees.
  template <class Body>
  void each_key(size_t s, const Body& body) const {
    const auto [head, position] = queries[s];
    const int64_t first = mask_.first_visible(position);
    own_.each([&](const Piece& piece, int64_t i, int64_t, int64_t key_position) {
      if (key_position < first || key_position > position) return;
      const float* const key = own_.key(own_.kv, head / group_, piece, i);
      body(scale_ * dot(key, &q[at(s)], dim_), key, key + own_.plane(piece));
    });
  }

  void recompute_outputs() {
    Vector maxima(queries.size() * ring_size_), sums(queries.size());
    for (size_t s = 0; s < queries.size(); ++s) {
      double& maximum = maxima[s * ring_size_ + rank_] = kNothing;
      each_key(s, [&](double score, auto, auto) { maximum = std::max(maximum, score); });
    }
    sum_(maxima);  // one rank fills in each
    true_output.resize(q.size());
    for (size_t s = 0; s < queries.size(); ++s) {
      const double* const first = &maxima[s * ring_size_];
      true_lse.push_back(*std::max_element(first, first + ring_size_));
      each_key(s, [&](double score, auto, const float* value) {
        const double weight = std::exp(score - true_lse[s]);
        sums[s] += weight;
        add_scaled(weight, value, dim_, &true_output[at(s)]);
      });
    }
    sum_(sums);
    sum_(true_output);
    for (size_t s = 0; s < queries.size(); ++s) {
      true_lse[s] += std::log(sums[s]);
      for (size_t i = at(s); i < at(s + 1); ++i) true_output[i] /= sums[s];
    }
  }

  void recompute_query_gradients() {
    true_dq.resize(q.size());
    for (size_t s = 0; s < queries.size(); ++s) {
      const double delta = std::inner_product(&d_output[at(s)], &d_output[at(s)] + dim_,
                                              &true_output[at(s)], 0.0);
      each_key(s, [&](double score, const float* key, const float* value) {
        const double weight = std::exp(score - true_lse[s]);
        const double d_score = weight * (dot(value, &d_output[at(s)], dim_) - delta);
        add_scaled(scale_ * d_score, key, dim_, &true_dq[at(s)]);
      });
    }
    sum_(true_dq);
  }

  void recompute_key_gradients() {
    true_dk.resize(k.size());
    true_dv.resize(k.size());
    for (size_t s = 0; s < keys.size(); ++s) {
      const auto [kv_head, key_position] = keys[s];
      own_.each([&](const Piece&, int64_t, int64_t row, int64_t position) {
        if (position < key_position || mask_.first_visible(position) > key_position) return;
        for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head) {
          const float* const query = own_.query(own_.q, head, row);
          const float* const d_out = own_.of_row(own_.d_output, head, row);
          const Vector out(own_.of_row(own_.output, head, row),
                           own_.of_row(own_.output, head, row) + dim_);
          const double score = scale_ * dot(query, &k[at(s)], dim_);
          const double weight = std::exp(score - own_.lse_of(head, row));
          const double d_score =
              weight * (dot(d_out, &v[at(s)], dim_) - dot(d_out, out.data(), dim_));
          add_scaled(scale_ * d_score, query, dim_, &true_dk[at(s)]);
          add_scaled(weight, d_out, dim_, &true_dv[at(s)]);
        }
      });
    }
    sum_(true_dk);
    sum_(true_dv);
  }

  const Rows& own_;
  const Mask& mask_;
  const int64_t dim_, group_;
  const double scale_;
  const size_t ring_size_, rank_;
  const Sum sum_;
};

/// Of all rows, not of the samples: these may all lie in padding.
double squares_of_value_gradients(const Rows& own) {
  double squares = 0;
  own.each([&](const Piece& piece, int64_t i, int64_t, int64_t) {
    for (int64_t head = 0; head < own.shape.kv_heads; ++head) {
      const float* const dv = own.key(own.dkv, head, piece, i) + own.plane(piece);
      for (int64_t c = 0; c < own.shape.head_dim; ++c) squares += double(dv[c]) * double(dv[c]);
    }
  });
  return squares;
}

/// Adds the time it lives to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(std::chrono::nanoseconds& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += std::chrono::steady_clock::now() - start_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  std::chrono::nanoseconds& sum_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Rows that are picked at random, all over the window.
std::vector<Sample> pick(int64_t count, int64_t heads, int64_t length, const CounterRandom& random) {
  std::vector<Sample> samples;
  for (uint64_t i = 0; i < uint64_t(count); ++i) {
    samples.push_back({int64_t(random.bits(2 * i) % uint64_t(heads)),
                       int64_t(random.bits(2 * i + 1) % uint64_t(length))});
  }
  return samples;
}

}  // namespace

SpotCheck::SpotCheck(Backend& device, Comm& ring, const Trace& trace, const GptConfig& gpt,
                     const SequenceLayout& layout, Settings settings)
    : ForwardingBackend(device),
      ring_(ring),
      trace_(trace),
      gpt_(gpt),
      layout_(layout),
      settings_(settings) {}

void SpotCheck::begin_window(const Mask& mask) {
  mask_ = mask;
  layers_.clear();
  ++windows_;
}

void SpotCheck::rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) {
  ForwardingBackend::rotary_table(pieces, base, table);
  const Stopwatch cost(cost_);
  const std::vector<float> own = host_values(*this, table);
  const auto width = size_t(gpt_.heads.head_dim), half = width / 2;
  const CounterRandom random(settings_.seed, hash_name(fmt::format("rotary {}", windows_)));
  const std::vector<Sample> rows = pick(settings_.rows, 1, layout_.length, random);
  Vector errors(rows.size());  // one rank fills in each
  for (size_t s = 0; s < rows.size(); ++s) {
    for (const Piece& piece : layout_.ranks[size_t(ring_.rank())]) {
      const int64_t position = rows[s].position, distance_in_piece = position - piece.first_position;
      const int64_t i = distance_in_piece / piece.stride;
      if (distance_in_piece < 0 || i >= piece.row_count || piece.position(i) != position) continue;
      const auto first = own.begin() + (piece.first_row + i) * int64_t(width);
      const Vector actual(first, first + int64_t(width));
      Vector expected(width);
      for (size_t pair = 0; pair < half; ++pair) {
        const double angle = double(position) * std::pow(gpt_.rope_base, -double(pair) / double(half));
        expected[pair] = std::cos(angle);
        expected[half + pair] = std::sin(angle);
      }
      errors[s] = distance(actual, expected) / std::sqrt(double(width));
    }
  }
  sum_over_ring(errors);
  for (size_t s = 0; s < rows.size(); ++s) {
    const int64_t position = rows[s].position;
    keep({"rotary table",
          fmt::format("position {} (rank {} of the ring)", position, layout_.rank_of(position)),
          errors[s], kRotaryTolerance});
  }
}

void SpotCheck::qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                                  const Tensor& kv) {
  ForwardingBackend::qkv_split_forward(split, qkv, q, kv);
  Layer& layer = layers_[trace_.place().layer];
  layer.q = q;
  layer.kv = kv;
}

void SpotCheck::attention_finish(const HeadShape& shape, const AttentionState& state,
                                 const Tensor& output, const Tensor& lse) {
  ForwardingBackend::attention_finish(shape, state, output, lse);
  Layer& layer = layers_[trace_.place().layer];
  layer.output = output;
  layer.lse = lse;
}

void SpotCheck::attention_delta(const HeadShape& shape, const Tensor& output,
                                const Tensor& d_output, const Tensor& delta) {
  {
    const Stopwatch cost(cost_);
    layers_[trace_.place().layer].d_output = host_values(*this, d_output);
  }
  ForwardingBackend::attention_delta(shape, output, d_output, delta);
}

void SpotCheck::qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                                   const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                                   const Tensor& d_k_norm) {
  const int layer = trace_.place().layer;
  {
    const Stopwatch cost(cost_);
    check(layer, layers_.at(layer), dq, dkv);
  }
  layers_.erase(layer);
  ForwardingBackend::qkv_split_backward(split, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
}

void SpotCheck::sum_over_ring(std::span<double> values) {
  const ArenaScope scope(arena());
  const Tensor sums = arena().allocate("verify", Dtype::f64, {std::ssize(values), 1, 1, 1});
  ringlet::upload<double>(*this, values, sums);
  wait(ring_.all_reduce(sums, record()));
  ringlet::read<double>(*this, sums, values);
}

void SpotCheck::check(int layer, const Layer& tensors, const Tensor& dq, const Tensor& dkv) {
  const HeadShape shape = gpt_.heads;
  const Rows own{shape,
                 layout_.ranks[size_t(ring_.rank())],
                 layout_.rows(ring_.rank()),
                 host_values(*this, tensors.q),
                 host_values(*this, tensors.kv),
                 host_values(*this, tensors.output),
                 host_values(*this, tensors.lse),
                 host_values(*this, dq),
                 host_values(*this, dkv),
                 tensors.d_output};
  const int64_t count = (settings_.rows + gpt_.layers - 1) / gpt_.layers;
  const auto stream = [&](const char* kind) {
    return CounterRandom(settings_.seed,
                         hash_name(fmt::format("{} {} {}", kind, windows_, layer)));
  };
  const LayerCheck rows(own, mask_, ring_.size(), ring_.rank(),
                        pick(count, shape.heads, layout_.length, stream("queries")),
                        pick(count, shape.kv_heads, layout_.length, stream("keys")),
                        [this](std::span<double> values) { sum_over_ring(values); });
  const int64_t dim = shape.head_dim;
  const auto compare = [&](const char* quantity, const std::vector<Sample>& samples,
                           const Vector& actual, const Vector& expected, int64_t width,
                           double tolerance, double floor) {
    const RowError row = worst_row(actual, expected, width, floor);
    if (row.row < 0) return;
    const auto [head, position] = samples[size_t(row.row)];
    keep({quantity,
          fmt::format("layer {}, head {}, position {} (rank {} of the ring)", layer, head, position,
                      layout_.rank_of(position)),
          row.error, tolerance});
  };
  const bool rounds = gpt_.dtype == Dtype::bf16;
  double squares = squares_of_value_gradients(own);
  sum_over_ring({&squares, 1});
  const double floor = kVanishingNorm * std::sqrt(squares / double(layout_.length * shape.kv_heads));
  const double forward = rounds ? kBf16ForwardTolerance : kForwardTolerance;
  const double backward = rounds ? kBf16BackwardTolerance : kBackwardTolerance;
  compare("attention output", rows.queries, rows.output, rows.true_output, dim, forward, 0);
  compare("LSE", rows.queries, rows.lse, rows.true_lse, 1, forward, 0);
  compare("dV", rows.keys, rows.dv, rows.true_dv, dim, backward, 0);
  compare("dK", rows.keys, rows.dk, rows.true_dk, dim, backward, floor);
  compare("dQ", rows.queries, rows.dq, rows.true_dq, dim, backward, floor);
  rows_checked_ += 2 * count;
}

const Deviation& SpotCheck::worst() const {
  return *std::ranges::max_element(worst_, [](const Deviation& a, const Deviation& b) { return worse(b, a); });
}

void SpotCheck::keep(const Deviation& found) {
  const auto kept = std::ranges::find(worst_, found.quantity, &Deviation::quantity);
  if (kept == worst_.end()) {
    worst_.push_back(found);
  } else if (worse(found, *kept)) {
    *kept = found;
  }
}

}  // namespace ringlet
