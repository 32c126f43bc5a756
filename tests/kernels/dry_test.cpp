#include <gtest/gtest.h>

#include "kernels/causal_pairs.h"
#include "kernels/dry/dry_backend.h"
#include "kernels/random.h"

namespace ringlet::test {
namespace {

struct DryBench {
  std::unique_ptr<Backend> device = make_dry_backend(int64_t{1} << 50);

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

TEST(CausalPairsTest, AreTheVisibleOnesOfPiecesOfAllKinds) {
  const CounterRandom random(1, hash_name("pieces"));
  for (uint64_t i = 0; i < 300; ++i) {
    const auto below = [&](uint64_t which, uint64_t limit) {
      return int64_t(random.bits(8 * i + which) % limit);
    };
    const Piece queries{below(0, 60), 1 + below(1, 5), below(2, 4), below(3, 40)};
    const Piece keys{below(4, 60), 1 + below(5, 5), 0, below(6, 40)};
    EXPECT_EQ(double(causal_pairs(queries, keys)), counted_pairs(queries, keys)) << i;
  }
}

TEST(CausalPairsTest, MillionsOfTokensAreExactAndCountedAtOnce) {
  const int64_t rows = int64_t{1} << 23;
  const Piece all{0, 1, 0, rows};
  EXPECT_EQ(double(causal_pairs(all, all)), double(rows) * double(rows + 1) / 2);
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
