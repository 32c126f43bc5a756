// The verification of the ring passes the real step and fails every step that has a defect, at its
// place.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/defects.h"
#include "tests/support/wrong_device.h"

namespace ringlet::test {
namespace {

using testing::HasSubstr;

VerifyMatrix::Model grouped_model() {
  for (const VerifyMatrix::Model& model : full_matrix().models) {
    if (model.name == "GQA") return model;
  }
  throw Error("no model with grouped KV heads");
}

VerifyMatrix defect_matrix(VerifyMask mask) {
  VerifyMatrix matrix;
  matrix.models = {grouped_model()};
  matrix.masks = {mask};
  matrix.lengths = {kDefectLength};
  matrix.layouts = {Layout::zigzag};
  matrix.worlds = {{kDefectRing, 1}};
  matrix.policies = {Recompute::selective};
  return matrix;
}

void expect_clean(const VerifyMatrix& matrix) {
  int64_t count = 0;
  verify(matrix, real_parts(), [&](const VerifyCase& c) {
    ++count;
    const Deviation* const failed = c.first_failed();
    if (failed == nullptr) return;
    ADD_FAILURE() << c.name() << ": " << failed->quantity << ", " << failed->where << ": "
                  << failed->error << " > " << failed->tolerance;
  });
  EXPECT_EQ(count, matrix.case_count());
  EXPECT_GT(count, 0);
}

TEST(VerifyTest, PassesTheQuickMatrix) { expect_clean(quick_matrix()); }

// One model and one policy for each length, every mask, layout and world.
TEST(VerifyTest, PassesADiagonalOfTheFullMatrix) {
  const VerifyMatrix full = full_matrix();
  for (size_t i = 0; i < full.lengths.size(); ++i) {
    VerifyMatrix part = full;
    part.lengths = {full.lengths[i]};
    part.models = {full.models[i % full.models.size()]};
    part.policies = {full.policies[(i + 1) % full.policies.size()]};
    expect_clean(part);
  }
}

TEST(VerifyTest, FailsEveryDefectAtItsPlace) {
  std::set<std::string> quantities, seen_to_fail;
  fmt::print("{:<45} {:<17} {}\n", "defect", "first wrong", "where");
  for (const Defect& defect : all_defects()) {
    SCOPED_TRACE(defect.name);
    verify(defect_matrix(defect.mask), defect.parts, [&](const VerifyCase& c) {
      for (const Deviation& deviation : c.deviations) {
        quantities.insert(deviation.quantity);
        if (!deviation.passed()) seen_to_fail.insert(deviation.quantity);
      }
      const Deviation* const failed = c.first_failed();
      ASSERT_NE(failed, nullptr) << "not caught";
      EXPECT_EQ(failed->quantity, defect.quantity);
      EXPECT_THAT(failed->where, HasSubstr(defect.where));
      fmt::print("{:<45} {:<17} {} ({:.1e})\n", defect.name, failed->quantity, failed->where,
                 failed->error);
    });
  }
  EXPECT_EQ(seen_to_fail, quantities) << "a check that never fails proves nothing";
}

/// The optimizer's weights move, those that the model reads do not: on all ranks alike.
class NeverRounds : public WrongDevice {
 public:
  using WrongDevice::WrongDevice;
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights, const Tensor& first_moment,
             const Tensor& second_moment, const Tensor&) override {
    WrongDevice::adamw(settings, gradient, weights, first_moment, second_moment, {});
  }
};

TEST(VerifyTest, InBf16TheModelMustReadWhatTheOptimizerMade) {
  VerifyMatrix matrix = defect_matrix(VerifyMask::documents);
  for (VerifyMatrix::Model& model : matrix.models) model.gpt.dtype = Dtype::bf16;
  expect_clean(matrix);
  verify(matrix, with_device<NeverRounds>(), [](const VerifyCase& c) {
    const Deviation* const failed = c.first_failed();
    ASSERT_NE(failed, nullptr) << "not caught";
    EXPECT_EQ(failed->quantity, "weights of ranks");
    EXPECT_THAT(failed->where, HasSubstr("not what the optimizer made"));
  });
}

}  // namespace
}  // namespace ringlet::test
