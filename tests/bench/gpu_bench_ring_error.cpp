// The error of ring attention on a GPU against double: of one rank, and of eight.
#include <array>
#include <atomic>
#include <cmath>
#include <mutex>
#include <thread>

#include "kernels/bf16.h"
#include "kernels/comm/threads.h"
#include "tests/bench/gpu_bench_ring.h"
#include "tests/support/attention_reference.h"

namespace ringlet::bench {
namespace {

using test::AttentionCase;
using test::ReferenceInput;
using test::ReferenceResult;

constexpr std::array kQuantities{"O", "dQ", "dK", "dV"};
constexpr std::array kBars{5e-3, 1e-2, 1e-2, 5e-3};
constexpr double kGrowthBar = 1.2;  // of eight ranks over one

/// In the order of kQuantities, each [heads, length, head_dim].
using Whole = std::array<std::vector<double>, kQuantities.size()>;

AttentionCase case_of(const HeadShape& shape, const std::vector<Piece>& pieces) {
  AttentionCase c{shape, pieces, pieces};
  c.dtype = Dtype::bf16;
  return c;
}

/// Queries first ... first + count of one head, and the keys that they see.
ReferenceInput block_of(const ReferenceInput& whole, int64_t head, int64_t first, int64_t count) {
  const int64_t n = whole.shape.head_dim, length = int64_t(whole.query_positions.size()),
                keys = first + count;
  const auto rows = [&](const std::vector<double>& from, int64_t row, int64_t row_count) {
    const auto begin = from.begin() + (head * length + row) * n;
    return std::vector<double>(begin, begin + row_count * n);
  };
  ReferenceInput block{{1, 1, n}, {}, std::vector<int64_t>(size_t(count)), {}, {}, {}, {}, {}};
  for (int64_t key = 0; key < keys; ++key) block.key_positions.push_back(key);
  block.q = rows(whole.q, first, count), block.k = rows(whole.k, 0, keys),
  block.v = rows(whole.v, 0, keys);
  for (int64_t query = first; query < keys; ++query) {
    block.query_positions.push_back(query);
    const auto begin = whole.d_output.begin() + (query * whole.shape.heads + head) * n;
    block.d_output.insert(block.d_output.end(), begin, begin + n);
  }
  return block;
}

void add_to(const std::vector<double>& values, int64_t first, std::vector<double>& sum) {
  for (size_t i = 0; i < values.size(); ++i) sum[size_t(first) + i] += values[i];
}

/// Block by block of the queries, on all cores.
Whole reference_of(const HeadShape& shape, int64_t length) {
  constexpr int64_t kBlock = 128;
  const ReferenceInput input = case_of(shape, {{0, 1, 0, length}}).reference_input();
  Whole result;
  result.fill(std::vector<double>(size_t(shape.q_width() * length)));
  const int64_t blocks_of_head = (length + kBlock - 1) / kBlock,
                blocks = shape.heads * blocks_of_head;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  const auto work = [&] {
    for (int64_t i = next++; i < blocks; i = next++) {
      // The last blocks see most keys: they come first.
      const int64_t head = i % shape.heads, first = (blocks_of_head - 1 - i / shape.heads) * kBlock;
      const ReferenceResult part =
          attention_reference(block_of(input, head, first, std::min(kBlock, length - first)));
      const int64_t keys = head * length * shape.head_dim, queries = keys + first * shape.head_dim;
      const std::lock_guard lock(mutex);
      add_to(part.output, queries, result[0]);
      add_to(part.dq, queries, result[1]);
      add_to(part.dk, keys, result[2]);
      add_to(part.dv, keys, result[3]);
    }
  };
  std::vector<std::jthread> threads;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i)
    threads.emplace_back(work);
  threads.clear();
  return result;
}

template <class T>
std::vector<T> values_of(RingRank& rank, const Tensor& tensor) {
  std::vector<T> values(size_t(tensor.size()));
  read<T>(*rank.gpu, tensor, values);
  return values;
}

void put_inputs(RingRank& rank, const AttentionCase& c) {
  const auto put = [&](const std::vector<float>& values, const Tensor& to) {
    std::vector<Bf16> rounded;
    for (const float value : values) rounded.push_back(to_bf16(value));
    upload<Bf16>(*rank.gpu, rounded, to);
  };
  put(c.q(), rank.q);
  put(c.d_output(), rank.d_output);
  std::vector<float> kv;
  for (const Piece& piece : c.keys) {
    for (const std::vector<float>& values : {c.k({piece}), c.v({piece})})
      kv.insert(kv.end(), values.begin(), values.end());
  }
  put(kv, rank.kv);
}

/// Squared differences of this rank's part, in the order of kQuantities.
std::array<double, kQuantities.size()> differences_of(RingRank& rank, int64_t length,
                                                      const Whole& expected) {
  const int64_t n = rank.shape.head_dim, heads = rank.shape.heads, rows = rank.step.rows();
  const std::vector<Bf16> output = values_of<Bf16>(rank, rank.output);
  const std::vector<float> dq = values_of<float>(rank, rank.dq),
                           dkv = values_of<float>(rank, rank.dkv);
  std::array<double, kQuantities.size()> sums{};
  const auto add = [&](size_t quantity, double actual, int64_t at) {
    const double difference = actual - expected[quantity][size_t(at)];
    sums[quantity] += difference * difference;
  };
  for (const Piece& piece : rank.step.pieces()) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < piece.row_count * n; ++i) {
        const int64_t row = piece.first_row + i / n, x = i % n;
        const int64_t at = (head * length + piece.position(i / n)) * n + x;
        const int64_t key = 2 * heads * n * piece.first_row + head * piece.row_count * n + i;
        add(0, to_float(output[size_t((row * heads + head) * n + x)]), at);
        add(1, dq[size_t((head * rows + row) * n + x)], at);
        add(2, dkv[size_t(key)], at);
        add(3, dkv[size_t(key + heads * piece.row_count * n)], at);
      }
    }
  }
  return sums;
}

double squares(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return sum;
}

std::array<double, kQuantities.size()> errors_of(const CudaInterface& interface, RankMemory& memory,
                                                 const HeadShape& shape, int64_t length,
                                                 int ring_size, const Whole& expected) {
  const SequenceLayout layout = make_layout(Layout::zigzag, length, ring_size);
  std::array<double, kQuantities.size()> errors{};
  std::mutex mutex;
  ThreadsOptions options;
  options.ranks = ring_size;
  options.timeout = std::chrono::seconds(20);
  options.memory = &memory;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    RingRank rank(interface, shape, layout, ring, trace);
    put_inputs(rank, case_of(shape, layout.ranks[size_t(ring.rank())]));
    rank.forward();
    rank.backward();
    const auto differences = differences_of(rank, length, expected);
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < errors.size(); ++i) errors[i] += differences[i];
  });
  for (size_t i = 0; i < errors.size(); ++i)
    errors[i] = std::sqrt(errors[i] / squares(expected[i]));
  return errors;
}

/// Said of a figure that is above its bar, or not a number.
std::string bar_text(double value, double bar, const std::string& text) {
  return text + (value <= bar ? "" : " MISSED");
}

void measure_size(const CudaInterface& interface, RankMemory& memory, const HeadShape& shape,
                  int64_t length, Report& report) {
  const Whole expected = reference_of(shape, length);
  const auto one = errors_of(interface, memory, shape, length, 1, expected);
  const auto eight = errors_of(interface, memory, shape, length, 8, expected);
  for (size_t i = 0; i < kQuantities.size(); ++i) {
    const std::string name = "head_dim " + std::to_string(shape.head_dim) + ", T " +
                             std::to_string(length) + ", " + kQuantities[i];
    const std::string bar = "1e-3 (bar " + std::to_string(int(1e3 * kBars[i])) + ")";
    report.add(name + ", 1 rank", 0, 1e3 * one[i], bar_text(one[i], kBars[i], bar), 3);
    report.add(name + ", 8 ranks", 0, 1e3 * eight[i], bar_text(eight[i], kBars[i], bar), 3);
    report.add(name + ", 8 ranks over 1", 0, eight[i] / one[i],
               bar_text(eight[i] / one[i], kGrowthBar, "x (bar 1.2)"), 3);
  }
}

}  // namespace

void measure_ring_error(const CudaInterface& interface, Report& report) {
  report.begin("Error of ring attention, zigzag, ranks on one GPU",
               "bf16 inputs and outputs, dQ, dK and dV as their f32 sums; L2 norm of the "
               "difference from dense attention in double over that of its result, whole "
               "tensors, causal, inputs random");
  const std::unique_ptr<RankMemory> memory = interface.make_rank_memory();
  for (const HeadShape& shape : {HeadShape{2, 2, 128}, {4, 4, 64}}) {
    for (const int64_t length : {2048, 4096}) {
      try {
        measure_size(interface, *memory, shape, length, report);
      } catch (const std::exception& error) {
        report.skip("head_dim " + std::to_string(shape.head_dim) + ", T " + std::to_string(length),
                    error.what());
      }
    }
  }
}

}  // namespace ringlet::bench
