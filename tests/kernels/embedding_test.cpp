#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/host_tensor.h"
#include "tests/support/simd_targets.h"

namespace ringlet::test {
namespace {

std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint64_t seed) {
  const CounterRandom random(seed, hash_name("tokens"));
  std::vector<int32_t> tokens(count);
  for (int64_t i = 0; i < count; ++i) tokens[i] = int32_t(random.bits(i) % vocabulary);
  return tokens;
}

class EmbeddingTest : public SimdTargetTest {};
INSTANTIATE_TEST_SUITE_P(Simd, EmbeddingTest, each_simd_target(), simd_target_name);

TEST_P(EmbeddingTest, ForwardCopiesRowsOfTheTable) {
  Bench bench;
  for (const int64_t rows : {0, 1, 63, 130}) {
    for (const int64_t width : {1, 7, 64, 65}) {
      const auto table = random_values(17 * width, 1);
      const auto tokens = random_tokens(rows, 17, 2);
      const Tensor y = bench.poisoned({rows, width, 1, 1});
      bench.device->embedding_forward(bench.put(tokens, {rows, 1, 1, 1}),
                                      bench.put(table, {17, width, 1, 1}), y);
      std::vector<float> expected;
      for (const int32_t token : tokens) {
        expected.insert(expected.end(), table.begin() + token * width,
                        table.begin() + (token + 1) * width);
      }
      EXPECT_EQ(bench.get(y), expected);
    }
  }
}

// In the order of the rows and in f32, so bit for bit.
TEST_P(EmbeddingTest, BackwardAddsRowsInOrder) {
  Bench bench;
  for (const int64_t rows : {0, 1, 63, 130}) {
    for (const int64_t width : {1, 7, 64, 65}) {
      const auto dy = random_values(rows * width, 3);
      const auto tokens = random_tokens(rows, 17, 4);
      auto expected = random_values(17 * width, 5);
      const Tensor d_table = bench.put(expected, {17, width, 1, 1});
      bench.device->embedding_backward(bench.put(tokens, {rows, 1, 1, 1}),
                                       bench.put(dy, {rows, width, 1, 1}), d_table);
      for (int64_t i = 0; i < rows * width; ++i) {
        expected[tokens[i / width] * width + i % width] += dy[i];
      }
      EXPECT_EQ(bench.get(d_table), expected);
    }
  }
}

TEST(EmbeddingErrorTest, TokensOutsideTheVocabularyThrow) {
  Bench bench;
  const Tensor table = bench.poisoned({17, 8, 1, 1}), y = bench.poisoned({1, 8, 1, 1});
  for (const int32_t token : {-1, 17}) {
    const Tensor tokens = bench.put<int32_t>({token}, {1, 1, 1, 1});
    EXPECT_THROW(bench.device->embedding_forward(tokens, table, y), Error);
    EXPECT_THROW(bench.device->embedding_backward(tokens, y, table), Error);
  }
}

TEST(EmbeddingErrorTest, WrongShapesThrow) {
  Bench bench;
  const Tensor table = bench.poisoned({17, 8, 1, 1}), y = bench.poisoned({2, 8, 1, 1});
  const Tensor tokens = bench.put<int32_t>({1, 2}, {2, 1, 1, 1});
  EXPECT_THROW(bench.device->embedding_forward(tokens.slice(0, 1), table, y), Error);
  EXPECT_THROW(bench.device->embedding_forward(tokens, bench.poisoned({17, 9, 1, 1}), y), Error);
  EXPECT_THROW(bench.device->embedding_forward(bench.poisoned({2, 1, 1, 1}), table, y), Error)
      << "tokens that are floats";
  EXPECT_THROW(bench.device->embedding_backward(tokens, table, y), Error);
}

}  // namespace
}  // namespace ringlet::test
