// Embedding, loss, optimizer.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/cuda/device_bench.h"
#include "tests/support/compare.h"
#include "tests/support/op_reference.h"

namespace ringlet::test {
namespace {

class DeviceEmbeddingTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceEmbeddingTest, testing::ValuesIn(every_device()), setting_name);

TEST_P(DeviceEmbeddingTest, ForwardCopiesRowsAndBackwardAddsThem) {
  for (const int64_t rows : {0, 1, 63, 130, 1000, 70'001}) {
    for (const auto& [vocabulary, width] :
         {std::pair<int64_t, int64_t>{17, 1}, {17, 7}, {257, 64}, {5, 65}, {1000, 768}}) {
      if (rows > 1000 && width > 7) continue;
      SCOPED_TRACE(testing::Message() << rows << " rows, table " << vocabulary << " x " << width);
      const Floats table = random_activations(vocabulary * width), dy = random_activations(rows * width);
      const Floats start = random_floats(vocabulary * width);
      const std::vector<int32_t> tokens = random_integers(rows, vocabulary);
      const Tensor token_tensor = put_integers(tokens), y = poisoned({rows, width, 1, 1});
      device().embedding_forward(token_tensor, put(table, {vocabulary, width, 1, 1}), y);
      Floats expected;
      Doubles gradient = widened(start);
      for (int64_t row = 0; row < rows; ++row) {
        expected.insert(expected.end(), table.begin() + tokens[row] * width,
                        table.begin() + (tokens[row] + 1) * width);
        for (int64_t i = 0; i < width; ++i) gradient[tokens[row] * width + i] += double(dy[row * width + i]);
      }
      EXPECT_EQ(get(y), expected);
      const Tensor d_table = put_f32(start, {vocabulary, width, 1, 1});
      device().embedding_backward(token_tensor, put(dy, {rows, width, 1, 1}), d_table);
      expect_close(get(d_table), gradient, width, kOutputTolerance, "d_table");
      next_case();
    }
  }
}

// All rows the same token, as in padding: the longest sum there is.
TEST_P(DeviceEmbeddingTest, OneTokenGathersAllRows) {
  const int64_t rows = 5000, width = 64;
  const Floats dy = random_activations(rows * width);
  Doubles expected(3 * width);
  for (int64_t i = 0; i < rows * width; ++i) expected[width + i % width] += double(dy[i]);
  const Tensor d_table = put_f32(Floats(3 * width), {3, width, 1, 1});
  device().embedding_backward(put_integers(std::vector<int32_t>(rows, 1)), put(dy, {rows, width, 1, 1}),
                              d_table);
  expect_close(get(d_table), expected, width, kOutputTolerance, "d_table");
}

TEST_P(DeviceEmbeddingTest, EqualCallsGiveEqualBits) {
  const int64_t rows = on_cuda() ? 8192 : 100, width = 768, vocabulary = 257;
  const Tensor tokens = put_integers(random_integers(rows, vocabulary));
  const Tensor dy = put(random_activations(rows * width), {rows, width, 1, 1});
  const Floats start = random_floats(vocabulary * width);
  std::vector<std::byte> first;
  for (int i = 0; i < (on_cuda() ? 20 : 2); ++i) {
    const Tensor d_table = put_f32(start, {vocabulary, width, 1, 1});
    device().embedding_backward(tokens, dy, d_table);
    const std::vector<std::byte> now = bits(d_table);
    if (i == 0) first = now;
    ASSERT_TRUE(now == first) << "call " << i;
  }
}

class DeviceLossTest : public DeviceTest {
 protected:
  /// Any label, every fifth -1.
  std::vector<int32_t> random_labels(int64_t rows, int64_t vocabulary) {
    std::vector<int32_t> labels = random_integers(rows, vocabulary);
    for (int64_t i = 3; i < rows; i += 5) labels[i] = -1;
    return labels;
  }
  float loss_of(const Floats& logits, int32_t label) {
    const Tensor losses = poisoned_f32({1, 1, 1, 1});
    device().cross_entropy(put(logits, {1, int64_t(logits.size()), 1, 1}), put_integers({label}),
                           CrossEntropy::loss_only, 1, losses);
    return get(losses)[0];
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceLossTest, testing::ValuesIn(every_device()), setting_name);

TEST_P(DeviceLossTest, LossAndGradientAreTheReference) {
  constexpr float kScale = 0.37f;
  for (const auto& [rows, vocabulary] : {std::pair<int64_t, int64_t>{0, 64},
                                         {1, 1},
                                         {65, 2},
                                         {65, 63},
                                         {7, 64},
                                         {65, 65},
                                         {130, 257},
                                         {7, 1031},
                                         {65, 2100},
                                         {130, 8192},
                                         {65, 32064},
                                         {3, 50304},
                                         {7, 120000},
                                         {70'001, 5}}) {
    for (const double scale : {1.0, 30.0}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << vocabulary << ", scale " << scale);
      const Floats logits = random_activations(rows * vocabulary, scale);
      const std::vector<int32_t> labels = random_labels(rows, vocabulary);
      Doubles gradient = reference::cross_entropy_backward(widened(logits), labels);
      for (double& value : gradient) value *= double(kScale);
      for (const auto mode : {CrossEntropy::loss_only, CrossEntropy::loss_and_gradient}) {
        const Tensor x = put(logits, {rows, vocabulary, 1, 1}), losses = poisoned_f32({rows, 1, 1, 1});
        device().cross_entropy(x, put_integers(labels), mode, kScale, losses);
        expect_close(get(losses), reference::cross_entropy(widened(logits), labels), 1, kOutputTolerance,
                     "losses");
        if (mode == CrossEntropy::loss_only) continue;
        const Floats actual = get(x);
        expect_close(actual, gradient, vocabulary, in_bf16() ? 4e-3 : kGradientTolerance, "gradient");
        for (int64_t row = 0; row < rows; ++row) {
          if (labels[row] >= 0) continue;
          EXPECT_TRUE(std::all_of(actual.begin() + row * vocabulary, actual.begin() + (row + 1) * vocabulary,
                                  [](float value) { return value == 0; }))
              << "row " << row << " is not scored";
        }
      }
      next_case();
    }
  }
}

// More rows than run at once, so that a block takes one row after the other. Few are distinct: the reference
// is slow.
TEST_P(DeviceLossTest, ManyLongRowsAreEachLikeTheRowAlone) {
  const int64_t vocabulary = 50304, distinct = 3, rows = on_cuda() ? (in_bf16() ? 1201 : 601) : 7;
  const Floats values = random_activations(distinct * vocabulary, 3);
  const std::vector<int32_t> labels_of = {17, -1, 50303};
  const Doubles gradient = reference::cross_entropy_backward(widened(values), labels_of);
  const Doubles expected = reference::cross_entropy(widened(values), labels_of);
  const Tensor source = put(values, {distinct, vocabulary, 1, 1}), x = poisoned({rows, vocabulary, 1, 1});
  std::vector<int32_t> labels(rows);
  for (const auto mode : {CrossEntropy::loss_only, CrossEntropy::loss_and_gradient}) {
    for (int64_t row = 0; row < rows; ++row) {
      labels[row] = labels_of[row % distinct];
      device().copy(source.slice(row % distinct, 1), x.slice(row, 1));
    }
    const Tensor losses = poisoned_f32({rows, 1, 1, 1});
    device().cross_entropy(x, put_integers(labels), mode, 1, losses);
    const Floats actual = get(losses);
    for (int64_t row = 0; row < rows; ++row) {
      ASSERT_NEAR(double(actual[row]), expected[row % distinct], 1e-4) << "row " << row;
      ASSERT_EQ(actual[row], actual[row % distinct]) << "row " << row;
    }
  }
  expect_close(get(x.slice(0, distinct)), gradient, vocabulary, in_bf16() ? 4e-3 : kGradientTolerance,
               "gradient");
  const std::vector<std::byte> first = bits(x.slice(0, distinct));
  for (int64_t row = distinct; row + distinct <= rows; row += distinct) {
    ASSERT_TRUE(bits(x.slice(row, distinct)) == first) << "row " << row;
  }
}

TEST_P(DeviceLossTest, HugeLogitsStayFinite) {
  Floats logits(100, -9984);
  logits[3] = 9984;
  EXPECT_EQ(loss_of(logits, 3), 0.0f);
  EXPECT_EQ(loss_of(logits, 7), 2 * 9984.0f);
  for (const float level : {9984.0f, -9984.0f}) {
    EXPECT_NEAR(loss_of(Floats(100, level), 0), std::log(100.0f), 1e-5f);
  }
}

TEST_P(DeviceLossTest, OneNanLogitMakesTheLossNan) {
  for (const size_t place : {0, 5, 16, 99}) {
    Floats logits = random_activations(100);
    logits[place] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(loss_of(logits, 50))) << place;
  }
}

class DeviceAdamWTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceAdamWTest,
                         testing::Values(Setting{DeviceKind::cpu, Dtype::f32},
                                         Setting{DeviceKind::cuda, Dtype::f32}),
                         setting_name);

TEST_P(DeviceAdamWTest, SeveralStepsAreTheReference) {
  AdamW settings{.learning_rate = 1e-2f,
                 .beta1 = 0.9f,
                 .beta2 = 0.95f,
                 .epsilon = 1e-8f,
                 .weight_decay = 0.1f,
                 .gradient_scale = 0.5f,
                 .step = 1};
  for (const int64_t size : {0, 1, 7, 63, 64, 65, 1009, 100'003}) {
    for (const bool with_rounded : {false, true}) {
      SCOPED_TRACE(testing::Message() << size << " elements, rounded " << with_rounded);
      const Shape shape{size, 1, 1, 1};
      const Floats start = random_floats(size);
      const Tensor weights = put_f32(start, shape), first = put_f32(Floats(size), shape);
      const Tensor second = put_f32(Floats(size), shape);
      const Tensor rounded = with_rounded ? poisoned_as(Dtype::bf16, shape) : Tensor{};
      reference::AdamWState expected{widened(start), Doubles(size), Doubles(size)};
      for (settings.step = 1; settings.step <= 5; ++settings.step) {
        const Floats gradient = random_floats(size);
        device().adamw(settings, put_f32(gradient, shape), weights, first, second, rounded);
        expected = reference::adamw(settings, widened(gradient), expected);
      }
      const Floats result = get(weights);
      expect_close(result, expected.weights, 1, kOutputTolerance, "weights");
      expect_close(get(first), expected.first_moment, 1, kOutputTolerance, "first moment");
      expect_close(get(second), expected.second_moment, 1, kOutputTolerance, "second moment");
      if (with_rounded) {
        const Floats copy = get(rounded);
        for (int64_t i = 0; i < size; ++i) ASSERT_EQ(copy[i], to_float(to_bf16(result[i]))) << i;
      }
      next_case();
    }
  }
}

// 1 - beta2^step is tiny at first: in float it would be off by 6e-4 here.
TEST_P(DeviceAdamWTest, BiasCorrectionIsWorkedOutInDouble) {
  const AdamW settings{.learning_rate = 1e-2f,
                       .beta1 = 0.9f,
                       .beta2 = 0.99999f,
                       .epsilon = 1e-8f,
                       .weight_decay = 0.1f,
                       .gradient_scale = 0.5f,
                       .step = 10};
  const Shape shape{64, 1, 1, 1};
  const Floats gradient = random_floats(64), zeros(64);
  const Tensor weights = put_f32(zeros, shape), first = put_f32(zeros, shape), second = put_f32(zeros, shape);
  device().adamw(settings, put_f32(gradient, shape), weights, first, second, {});
  const reference::AdamWState none{Doubles(64), Doubles(64), Doubles(64)};
  expect_close(get(weights), reference::adamw(settings, widened(gradient), none).weights, 1, 1e-6, "weights");
}

TEST_P(DeviceAdamWTest, SumOfSquaresIsExactToDouble) {
  for (const int64_t size : {0, 1, 7, 15, 16, 17, 63, 64, 65, 100'003, 3'000'001}) {
    const Floats x = random_floats(size);
    double expected = 0;
    for (const float value : x) expected += double(value) * double(value);
    const Tensor result = poisoned_as(Dtype::f64, {1, 1, 1, 1});
    double sum = 0;
    device().sum_of_squares(put_f32(x, {size, 1, 1, 1}), result);
    read<double>(device(), result, {&sum, 1});
    EXPECT_LE(std::abs(sum - expected), 1e-12 * expected) << size;
    next_case();
  }
}

TEST_P(DeviceAdamWTest, SumOfSquaresShowsWhatIsNotFinite) {
  for (const size_t place : {0, 20, 9999}) {
    Floats x = random_floats(10'000);
    x[place] = std::numeric_limits<float>::quiet_NaN();
    const Tensor result = poisoned_as(Dtype::f64, {1, 1, 1, 1});
    device().fill(0, make_tensor(result.data, Dtype::f32, {2, 1, 1, 1}));
    double sum = 0;
    device().sum_of_squares(put_f32(x, {10'000, 1, 1, 1}), result);
    read<double>(device(), result, {&sum, 1});
    EXPECT_TRUE(std::isnan(sum));
  }
}

}  // namespace
}  // namespace ringlet::test
