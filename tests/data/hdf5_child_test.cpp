#include "data/hdf5_child.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <vector>

#include "tests/data/data_support.h"

namespace ringlet::test {

namespace {

const Error kCrashed("the child crashed");

TEST(Hdf5ChildTest, GivesTheAnswerBack) {
  const CorpusFacts facts = run_hdf5_child(2, kCrashed, [] {
    CorpusFacts answer;
    answer.tokens.count = 42;
    answer.split.set("train");
    return answer;
  });
  EXPECT_EQ(facts.tokens.count, 42);
  EXPECT_EQ(facts.split.get(), "train");
}

TEST(Hdf5ChildTest, GivesItsErrorBackWithTheAdvice) {
  try {
    run_hdf5_child(2, kCrashed, []() -> CorpusFacts { throw Error("a cause", "an advice"); });
    ADD_FAILURE() << "no Error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "a cause");
    EXPECT_EQ(error.advice, "an advice");
  }
}

TEST(Hdf5ChildTest, ACrashIsAnError) {
  for (const int signal_number : {SIGSEGV, SIGABRT, SIGFPE, SIGKILL}) {
    expect_error(
        [&] {
          run_hdf5_child(2, kCrashed, [&]() -> CorpusFacts {
            raise(signal_number);
            return {};
          });
        },
        {"the child crashed"});
  }
}

TEST(Hdf5ChildTest, EndlessComputingIsAnErrorInBoundedTime) {
  const auto start = std::chrono::steady_clock::now();
  expect_error(
      [&] {
        run_hdf5_child(1, kCrashed, []() -> CorpusFacts {
          std::atomic<int64_t> count{0};
          for (;;) ++count;
        });
      },
      {"the child crashed"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Hdf5ChildTest, EndlessMemoryIsAnError) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer reports the failed allocation itself";
  const auto take_much = [] {
    const std::vector<char> memory(size_t{1} << 30);
    CorpusFacts answer;
    answer.tokens.count = memory[size_t(getpid())];  // so that it has to be there
    return answer;
  };
  expect_error([&] { run_hdf5_child(2, kCrashed, take_much); }, {"the child crashed"});
}

}  // namespace

}  // namespace ringlet::test
