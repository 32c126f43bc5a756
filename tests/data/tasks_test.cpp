#include "data/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "kernels/check.h"
#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

class TaskTest : public testing::Test {
 protected:
  TaskOptions options(const std::string& name, int64_t seq_len = 0, int64_t items = 0) const {
    TaskOptions task;
    task.name = name;
    task.seq_len = seq_len;
    task.items = items;
    if (name == "passkey") task.text = text_;
    return task;
  }
  const Folder folder_;
  const std::string text_ = folder_.write("text", std::string(3000, 'a') + std::string(3000, 'b'));
};

/// What stands behind the only earlier place where `question` stands; the place, too. -1: not once.
int64_t place_behind(const std::vector<int32_t>& tokens, std::span<const int32_t> question,
                     int64_t before) {
  int64_t found = -1;
  for (int64_t place = 0; place + std::ssize(question) <= before; ++place) {
    if (!std::ranges::equal(question, std::span(tokens).subspan(size_t(place), question.size())))
      continue;
    if (found >= 0) return -1;
    found = place + std::ssize(question);
  }
  return found;
}

/// Finds each answer of a sample by looking back for what stands before it, of `question_tokens`
/// tokens (in the place of the first of them there may stand another, `told`, where the answer is
/// told).
void expect_derivable(const TaskSample& sample, size_t question_tokens, int32_t told = -1) {
  int64_t asked_end = -1, source = -1;
  for (const auto& [place, distance] : sample.answers) {
    if (place != asked_end) {  // else the run goes on: the next token of both
      std::vector<int32_t> question(sample.tokens.begin() + (place - int64_t(question_tokens)),
                                    sample.tokens.begin() + place);
      if (told >= 0) question[0] = told;
      source = place_behind(sample.tokens, question, place - int64_t(question_tokens));
      ASSERT_GE(source, 0) << "not once, before " << place;
    }
    ASSERT_EQ(sample.tokens[size_t(source)], sample.tokens[size_t(place)]) << place;
    ASSERT_EQ(place - source, distance) << place;
    asked_end = place + 1;
    ++source;
  }
}

TEST_F(TaskTest, EveryAnswerIsFoundByLookingBack) {
  for (const auto& [seq_len, items] : {std::pair{64, 4}, {61, 7}, {16, 4}, {300, 1}, {512, 64}}) {
    TaskOptions mqar = options("mqar", seq_len, items);
    for (const auto& [least, most] :
         {std::pair{0, 0}, {items * 2, items * 2}, {items * 2 - 1, items * 2 + 3}}) {
      mqar.least_distance = least;
      mqar.most_distance = most;
      const Task task(mqar);
      for (int64_t i = 0; i < 50; ++i) {
        const TaskSample sample = task.sample(i);
        ASSERT_EQ(std::ssize(sample.tokens), seq_len);
        ASSERT_EQ(std::ssize(sample.answers), items);
        expect_derivable(sample, 1);
        for (const auto& [place, distance] : sample.answers) {
          ASSERT_GE(sample.tokens[size_t(place)], 128) << "a value";
          ASSERT_LT(sample.tokens[size_t(place - 1)], 128) << "a key";
          ASSERT_TRUE(most == 0 || (least <= distance && distance <= most)) << distance;
        }
      }
    }
  }
  for (const int64_t seq_len : {4, 5, 256}) {
    const Task task(options("induction", seq_len));
    for (int64_t i = 0; i < 100; ++i) {
      const TaskSample sample = task.sample(i);
      ASSERT_EQ(std::ssize(sample.tokens), seq_len);
      ASSERT_EQ(sample.answers.size(), 1u);
      ASSERT_EQ(sample.answers[0].place, seq_len - 1);
      expect_derivable(sample, 1);
    }
  }
  // where the string begins stands the begin mark, 2, for what is 1 before its copy
  for (const auto& [seq_len, items] : {std::pair{64, 0}, {65, 0}, {64, 5}, {4, 1}}) {
    const Task task(options("copy", seq_len, items));
    for (int64_t i = 0; i < 100; ++i) {
      const TaskSample sample = task.sample(i);
      ASSERT_EQ(std::ssize(sample.tokens), seq_len);
      ASSERT_EQ(std::ssize(sample.answers), items == 0 ? (seq_len - 2) / 2 : items);
      expect_derivable(sample, 1, 2);
    }
  }
  for (const int64_t seq_len : {81, 512, 4096}) {
    const Task task(options("passkey", seq_len));
    for (int64_t i = 0; i < 50; ++i) {
      const TaskSample sample = task.sample(i);
      ASSERT_EQ(std::ssize(sample.tokens), seq_len);
      ASSERT_EQ(sample.answers.size(), 5u);
      expect_derivable(sample, std::string("The pass key is ").size());
    }
  }
}

TEST_F(TaskTest, DistancesCoverTheirRangeAndStayInIt) {
  for (const auto& [name, least, most] : {std::tuple{"induction", 2, 254},
                                          {"induction", 7, 9},
                                          {"copy", 40, 44},
                                          {"passkey", 300, 330},
                                          {"mqar", 20, 40}}) {
    TaskOptions task = options(name, name == std::string("passkey") ? 512 : 256,
                               name == std::string("copy") ? 9 : 0);
    task.least_distance = least;
    task.most_distance = most;
    const Task made(task);
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 3000; ++i) {
      for (const auto& answer : made.sample(i).answers) seen.insert(answer.distance);
    }
    EXPECT_EQ(*seen.begin(), least) << name;
    EXPECT_EQ(*seen.rbegin(), most) << name;
    const bool even = name == std::string("mqar");
    EXPECT_EQ(std::ssize(seen), (most - least) / (even ? 2 : 1) + 1) << name;
  }
}

// Chances of the first slot and the second: 1 to 1/2, and for so few pairs hardly changed by what
// is taken.
TEST_F(TaskTest, QueriesComeSoonerByThePowerLaw) {
  const Task task(options("mqar", 512, 1));
  std::map<int64_t, int64_t> counts;
  constexpr int64_t kSamples = 20'000;
  for (int64_t i = 0; i < kSamples; ++i) ++counts[task.sample(i).answers[0].distance];
  double sum = 0;
  for (int64_t slot = 1; slot <= 255; ++slot) sum += 1.0 / double(slot);
  for (int64_t slot : {1, 2, 3, 10}) {
    const double expected = double(kSamples) / sum / double(slot);
    EXPECT_NEAR(double(counts[2 * slot]), expected, 5 * std::sqrt(expected)) << slot;
  }
}

// These samples were worked out by another program: every machine must give them.
TEST_F(TaskTest, SamplesArePureFunctionsOfSeedAndIndex) {
  for (const std::string& name : task_names()) {
    TaskOptions one = options(name), other = one;
    other.seed = 2;
    const Task a(one), b(one), c(other);
    EXPECT_EQ(a.sample(7).tokens, b.sample(7).tokens);
    EXPECT_NE(a.sample(7).tokens, a.sample(8).tokens);
    EXPECT_NE(a.sample(7).tokens, c.sample(7).tokens);
  }
  EXPECT_EQ(Task(options("mqar", 16, 2)).sample(0).tokens,
            (std::vector<int32_t>{91, 202, 124, 226, 124, 226, 224, 86, 91, 202, 112, 82, 96, 144,
                                  235, 131}));
  EXPECT_EQ(Task(options("induction", 12)).sample(0).tokens,
            (std::vector<int32_t>{1, 2, 3, 10, 2, 5, 7, 11, 14, 12, 1, 2}));
  EXPECT_EQ(Task(options("copy", 10)).sample(0).tokens,
            (std::vector<int32_t>{2, 4, 14, 4, 26, 1, 4, 14, 4, 26}));
}

TEST_F(TaskTest, WhatCannotBeIsOneLineWithAdvice) {
  const auto expect_refused = [&](TaskOptions task, const char* why, const char* advice) {
    try {
      const Task made(task);
      ADD_FAILURE() << why << ": accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
      EXPECT_NE(error.advice.find(advice), std::string::npos) << error.advice;
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  };
  expect_refused(options("recall"), "no task \"recall\"", "mqar, induction, copy, passkey");
  expect_refused(options("mqar", 15), "4 items in 15 tokens", "--seq-len");
  expect_refused(options("induction", 3), "3 tokens", "--seq-len");
  expect_refused(options("induction", 64, 2), "2 items", "mqar");
  expect_refused(options("copy", 3), "0 items in 3 tokens", "--seq-len");
  expect_refused(options("copy", 20, 10), "10 items in 20 tokens", "--items");
  expect_refused(options("passkey", 70), "70 tokens", "--seq-len");
  TaskOptions task = options("mqar", 1000, 200);
  expect_refused(task, "127 keys", "--vocabulary 402");
  task = options("mqar");
  task.vocabulary = 3;
  expect_refused(task, "vocabulary of 3", "--vocabulary 4");
  task = options("induction", 64);
  task.least_distance = task.most_distance = 63;
  expect_refused(task, "no distances of 63 to 63", "2..62");
  task.least_distance = 60, task.most_distance = 63;
  expect_refused(task, "no distances of 60 to 63", "2..62");
  task = options("mqar");
  task.least_distance = task.most_distance = 9;
  expect_refused(task, "no distances of 9 to 9", "8..56, even ones");
  task = options("passkey");
  task.text = "";
  expect_refused(task, "has none", "--text FILE");
  task.text = folder_.file("missing");
  expect_refused(task, "cannot read", "--text");
  task.text = folder_.write("short", "abc");
  expect_refused(task, "has 3 bytes", "--seq-len");
  std::string told = "The pass key is 5";
  told.resize(1000, 'a');
  task.text = folder_.write("told", told);
  expect_refused(task, "already tells a pass key", "another text");
  task = options("passkey");
  task.vocabulary = 300;
  expect_refused(task, "bytes", "--vocabulary");
  task = options("copy");
  task.text = text_;
  expect_refused(task, "not of a text", "passkey");
}

}  // namespace

}  // namespace ringlet::test
