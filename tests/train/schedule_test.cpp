#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ringlet {
namespace {

constexpr ScheduleSettings settings_of(ScheduleShape shape) {
  return {shape, 3e-3, 1e-4, 1000, 20, 150};
}

TEST(Schedule, WarmupRisesInEqualSharesFromAboveZeroToThePeak) {
  for (const ScheduleShape shape :
       {ScheduleShape::cosine, ScheduleShape::constant, ScheduleShape::wsd}) {
    const ScheduleSettings settings = settings_of(shape);
    EXPECT_DOUBLE_EQ(learning_rate(settings, 1), 3e-3 / 20);
    for (int64_t step = 2; step <= 20; ++step) {
      EXPECT_NEAR(learning_rate(settings, step) - learning_rate(settings, step - 1), 3e-3 / 20,
                  1e-15);
    }
    EXPECT_EQ(learning_rate(settings, 20), 3e-3);
  }
}

TEST(Schedule, CosineFallsToExactlyTheFinalRate) {
  const ScheduleSettings settings = settings_of(ScheduleShape::cosine);
  EXPECT_EQ(learning_rate(settings, 1000), 1e-4);
  EXPECT_NEAR(learning_rate(settings, 510), (3e-3 + 1e-4) / 2, 1e-15);  // half of the way
  const double quarter = 1e-4 + (3e-3 - 1e-4) * (1 + std::sqrt(0.5)) / 2;
  EXPECT_NEAR(learning_rate(settings, 20 + 245), quarter, 1e-15);
  for (int64_t step = 21; step <= 1000; ++step) {
    EXPECT_LT(learning_rate(settings, step), learning_rate(settings, step - 1)) << step;
  }
}

TEST(Schedule, WsdKeepsThePeakThenFallsInALine) {
  const ScheduleSettings settings = settings_of(ScheduleShape::wsd);
  for (int64_t step = 20; step <= 850; ++step) EXPECT_EQ(learning_rate(settings, step), 3e-3);
  for (int64_t step = 851; step <= 1000; ++step) {
    EXPECT_NEAR(learning_rate(settings, step - 1) - learning_rate(settings, step),
                (3e-3 - 1e-4) / 150, 1e-15);
  }
  EXPECT_EQ(learning_rate(settings, 1000), 1e-4);
}

TEST(Schedule, ConstantKeepsThePeak) {
  for (const int64_t step : {20, 21, 500, 1000, 1001}) {
    EXPECT_EQ(learning_rate(settings_of(ScheduleShape::constant), step), 3e-3);
  }
}

TEST(Schedule, WithoutWarmupNoStepHasRateZero) {
  for (const ScheduleShape shape :
       {ScheduleShape::cosine, ScheduleShape::constant, ScheduleShape::wsd}) {
    ScheduleSettings settings = settings_of(shape);
    settings.warmup_steps = 0;
    for (int64_t step = 1; step <= 1000; ++step) {
      const double rate = learning_rate(settings, step);
      EXPECT_TRUE(rate >= 1e-4 && rate <= 3e-3) << step << ": " << rate;
    }
  }
}

TEST(Schedule, ShortTrainingsAndStepsBeyondTheEndAreDefined) {
  EXPECT_EQ(learning_rate({ScheduleShape::cosine, 1, 0.1, 1, 0, 0}, 1), 0.1);
  EXPECT_EQ(learning_rate({ScheduleShape::cosine, 1, 0.1, 1, 1, 0}, 1), 1);
  EXPECT_EQ(learning_rate({ScheduleShape::wsd, 1, 0.1, 2, 1, 1}, 1), 1);
  EXPECT_EQ(learning_rate({ScheduleShape::wsd, 1, 0.1, 2, 1, 1}, 2), 0.1);
  EXPECT_EQ(learning_rate(settings_of(ScheduleShape::cosine), 5000), 1e-4);
}

}  // namespace
}  // namespace ringlet
