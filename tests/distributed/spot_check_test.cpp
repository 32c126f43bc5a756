// The sampled check of a real step, at a length that nobody computes densely here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/forwarding_backend.h"
#include "tests/support/defects.h"

namespace ringlet::test {
namespace {

constexpr int64_t kTokens = 1000;  // zigzag chunks of one size on rings of 4
constexpr int64_t kWindow = 300;
const RingSetup kZigzag{Layout::zigzag, kDefectRing, 1, {}};

VerifyProblem problem_of(VerifyMask mask) {
  for (const VerifyMatrix::Model& model : full_matrix().models) {
    if (model.name == "GQA") return make_problem(model.gpt, kTokens, 1, mask, kWindow, 1);
  }
  throw Error("no model with grouped KV heads");
}

std::vector<Deviation> samples(const VerifyProblem& problem, const RingSetup& setup,
                               const RingParts& parts) {
  return ring_step(problem, setup, parts, Watch::samples).samples;
}

/// The first that failed; empty when all passed.
std::string first_failed(const std::vector<Deviation>& deviations) {
  for (const Deviation& deviation : deviations) {
    if (!deviation.passed()) return deviation.quantity;
  }
  return "";
}

TEST(SpotCheckTest, PassesTheRealStep) {
  for (const VerifyMask mask : {VerifyMask::causal, VerifyMask::documents_and_window}) {
    const VerifyProblem problem = problem_of(mask);
    for (const Layout layout : {Layout::zigzag, Layout::contiguous, Layout::striped}) {
      for (const int ring_size : {1, 3, 4}) {
        SCOPED_TRACE(testing::Message()
                     << name_of(mask) << ", " << name_of(layout) << ", ring of " << ring_size);
        const std::vector<Deviation> found =
            samples(problem, {layout, ring_size, 1, {}}, real_parts());
        EXPECT_EQ(first_failed(found), "");
        std::vector<std::string> quantities;
        for (const Deviation& deviation : found) quantities.push_back(deviation.quantity);
        EXPECT_THAT(quantities, testing::ElementsAre("rotary table", "attention output", "LSE",
                                                     "dV", "dK", "dQ"));
      }
    }
  }
}

// Where padding is nearly all of a window, so that samples find nothing but rows without a gradient.
TEST(SpotCheckTest, PassesARealStepThatIsNearlyAllPadding) {
  VerifyProblem problem = problem_of(VerifyMask::causal);
  VerifyWindow& window = problem.windows.front();
  window.window.token_count = 3;
  window.window.document_starts = {0, 3};
  std::fill(window.labels.begin() + 3, window.labels.end(), -1);
  EXPECT_EQ(first_failed(samples(problem, kZigzag, real_parts())), "");
}

TEST(SpotCheckTest, FailsEveryDefectOfAttention) {
  for (const Defect& defect : all_defects()) {
    SCOPED_TRACE(defect.name);
    EXPECT_EQ(first_failed(samples(problem_of(defect.mask), kZigzag, defect.parts)),
              defect.sampled);
  }
}

/// Makes the angles in f32: nothing that a short window would show.
class RotatesInFloat : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    const auto half = size_t(table.shape[1] / 2);
    for (const Piece& piece : pieces) {
      for (int64_t i = 0; i < piece.row_count; ++i) {
        float* const row = table.row<float>(piece.first_row + i);
        for (size_t pair = 0; pair < half; ++pair) {
          const float frequency = std::pow(float(base), -float(pair) / float(half));
          const float angle = float(piece.position(i)) * frequency;
          row[pair] = std::cos(angle);
          row[half + pair] = std::sin(angle);
        }
      }
    }
  }
};

TEST(SpotCheckTest, FailsRotaryAnglesInFloat) {
  RingParts parts = real_parts();
  parts.device = [make = parts.device](int rank, int64_t arena_bytes, Trace& trace) {
    return std::make_unique<RotatesInFloat>(make(rank, arena_bytes, trace));
  };
  EXPECT_EQ(first_failed(samples(problem_of(VerifyMask::causal), kZigzag, parts)), "rotary table");
}

}  // namespace
}  // namespace ringlet::test
