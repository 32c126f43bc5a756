#include <gtest/gtest.h>

#include "kernels/dry/dry_backend.h"
#include "kernels/random.h"

namespace ringlet::test {
namespace {

struct DryBench {
  DryCounts counts;
  std::unique_ptr<Backend> device = make_dry_backend(int64_t{1} << 50, counts);

  Tensor tensor(Shape shape, Dtype dtype = Dtype::f32) {
    return device->arena().allocate("test", dtype, shape);
  }
};

double counted_pairs(const Piece& queries, const Piece& keys) {
  double pairs = 0;
  for (int64_t i = 0; i < queries.row_count; ++i) {
    for (int64_t j = 0; j < keys.row_count; ++j) {
      if (keys.position(j) <= queries.position(i)) ++pairs;
    }
  }
  return pairs;
}

/// FLOPs of one attention step forward and backward, with 6 query heads of 16.
DryCounts attention_counts(const Piece& queries, const Piece& keys) {
  DryBench bench;
  const int64_t rows = queries.first_row + queries.row_count + 3;
  const AttentionStep step{{6, 2, 16}, queries, keys, bench.tensor({rows, 1, 1, 1}, Dtype::i64)};
  const Tensor q = bench.tensor({6, rows, 16, 1}), kv = bench.tensor({2, 2, keys.row_count, 16});
  const Tensor per_row = bench.tensor({6, rows, 1, 1}), d_output = bench.tensor({rows, 96, 1, 1});
  bench.device->attention_forward(step, q, kv, {q, per_row, per_row});
  EXPECT_EQ(bench.counts.attention_flops, 4 * 96 * counted_pairs(queries, keys));
  bench.device->attention_backward(step, q, kv, {d_output, per_row, per_row}, q, Write::add, kv);
  return bench.counts;
}

TEST(DryBackendTest, CountsMatmulFlops) {
  DryBench bench;
  bench.device->matmul(bench.tensor({7, 3, 1, 1}), Transpose::yes, bench.tensor({5, 7, 1, 1}),
                       Transpose::yes, Write::set, bench.tensor({3, 5, 1, 1}));
  EXPECT_EQ(bench.counts.matmul_flops, 2.0 * 3 * 5 * 7);
  const int64_t large = int64_t{1} << 21;
  bench.device->matmul(bench.tensor({large, 4096, 1, 1}), Transpose::no,
                       bench.tensor({4096, 50'000, 1, 1}), Transpose::no, Write::add,
                       bench.tensor({large, 50'000, 1, 1}));
  EXPECT_EQ(bench.counts.matmul_flops, 210 + 2.0 * double(large) * 4096 * 50'000);
}

TEST(DryBackendTest, CountsVisiblePairsOfPiecesOfAllKinds) {
  const CounterRandom random(1, hash_name("pieces"));
  for (uint64_t i = 0; i < 300; ++i) {
    const auto below = [&](uint64_t which, uint64_t limit) {
      return int64_t(random.bits(8 * i + which) % limit);
    };
    const Piece queries{below(0, 60), 1 + below(1, 5), below(2, 4), below(3, 40)};
    const Piece keys{below(4, 60), 1 + below(5, 5), 0, below(6, 40)};
    const DryCounts counts = attention_counts(queries, keys);
    EXPECT_EQ(counts.attention_flops, 14 * 96 * counted_pairs(queries, keys)) << i;
  }
}

TEST(DryBackendTest, CountsAMillionTokensExactlyAndAtOnce) {
  DryBench bench;
  const int64_t rows = int64_t{1} << 23;
  const Piece all{0, 1, 0, rows};
  const AttentionStep step{{1, 1, 8}, all, all, bench.tensor({rows, 1, 1, 1}, Dtype::i64)};
  const Tensor q = bench.tensor({1, rows, 8, 1}), per_row = bench.tensor({1, rows, 1, 1});
  bench.device->attention_forward(step, q, bench.tensor({2, 1, rows, 8}), {q, per_row, per_row});
  EXPECT_EQ(bench.counts.attention_flops, 4 * 8 * (double(rows) * double(rows + 1) / 2));
}

TEST(DryBackendTest, ReadsGiveZerosAndEventsAreReached) {
  DryBench bench;
  const Tensor x = bench.tensor({3, 1, 1, 1});
  upload<float>(*bench.device, std::vector<float>{1, 2, 3}, x);
  std::vector<float> values = {4, 5, 6};
  read<float>(*bench.device, x, values);
  EXPECT_EQ(values, std::vector<float>(3, 0.0f));
  EXPECT_TRUE(bench.device->record().reached());
}

TEST(DryBackendTest, ChecksShapesAsTheRealOneDoes) {
  DryBench bench;
  const Tensor x = bench.tensor({3, 4, 1, 1}), y = bench.tensor({3, 5, 1, 1});
  EXPECT_THROW(bench.device->rms_norm_forward(x, bench.tensor({4, 1, 1, 1}), 0, y), Error);
  EXPECT_THROW(bench.device->swiglu_forward(x, y), Error);
  EXPECT_THROW(bench.device->matmul(x, Transpose::no, y, Transpose::no, Write::set, y), Error);
}

TEST(DryBackendDeathTest, ItsMemoryCannotBeTouched) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  DryBench bench;
  const Tensor x = bench.tensor({3, 1, 1, 1});
  EXPECT_DEATH(*const_cast<volatile std::byte*>(x.data) = std::byte{1}, "");
}

}  // namespace
}  // namespace ringlet::test
