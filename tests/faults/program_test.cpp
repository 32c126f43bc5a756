// The program as a user runs it: prepare, train, interrupt, kill, resume, evaluate, generate, and what he may get wrong.
#include <gtest/gtest.h>
#include <signal.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "tests/support/program.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kRefusalSeconds = 30;  // instrumented code says nothing about time
#else
constexpr double kRefusalSeconds = 2;
#endif

struct ProgramTest : testing::Test {
  TemporaryFolder temporary;
  const fs::path folder = temporary.path();
  const std::string corpus = make_corpus(temporary, 4);
  const std::string validation = make_corpus(temporary, 3, "validation");

  ProgramResult run(const std::vector<std::string>& arguments) {
    return run_program(RINGLET_PROGRAM, arguments, folder);
  }

  /// Arguments of a tiny training named `name`.
  std::vector<std::string> training(const std::string& name, std::vector<std::string> more = {}) {
    const fs::path config = folder / (name + ".toml");
    write_text(config, "[model]\nlayers = 2\nwidth = 32\nheads = 4\nmlp_width = 48\n[data]\ncorpus = \"" + corpus +
                           "\"\nvalidation = \"" + validation +
                           "\"\n[run]\nseq_len = 96\nranks = 2\n[train]\nsteps = 40\nlog_every = 1\n"
                           "[checkpoint]\nevery = 10\n");
    std::vector<std::string> arguments{"train", config.string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }

  /// A corpus of ids with the byte vocabulary's count that are not bytes: another tokenizer.
  std::string token_corpus() {
    std::string tokens(20'000, '\0');
    for (size_t i = 0; i < tokens.size(); i += 2) tokens[i] = char(i / 2 % 200);
    write_text(folder / "ids.bin", tokens);
    const ProgramResult made =
        run({"prepare", "ids.bin", "-o", "ids.h5", "--vocabulary", "256"});
    EXPECT_EQ(made.exit_code, 0) << made.errors;
    return "ids.h5";
  }

  /// The training's metrics by step; evaluations are left out.
  std::map<int64_t, double> losses(const std::string& name) {
    std::map<int64_t, double> result;
    std::istringstream lines(file_text(folder / "runs" / name / "metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const Json record = Json::parse(line);
      if (!record.contains("loss")) continue;
      EXPECT_FALSE(result.contains(record["step"])) << "step " << record["step"] << " stands twice";
      result[record["step"]] = record["loss"];
    }
    return result;
  }

  void wait_for_step(const std::string& name, int64_t step) {
    const fs::path metrics = folder / "runs" / name / "metrics.jsonl";
    const std::string mark = "\"step\":" + std::to_string(step) + ",";
    for (int i = 0; i < 10'000 && file_text(metrics).find(mark) == std::string::npos; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ASSERT_NE(file_text(metrics).find(mark), std::string::npos) << "never came to step " << step;
  }

  /// One line of cause, one of advice, the right exit code, in time.
  void expect_refusal(const ProgramResult& result, int exit_code, const std::string& cause) {
    EXPECT_EQ(result.exit_code, exit_code) << result.errors;
    EXPECT_NE(result.errors.find(cause), std::string::npos) << "no '" << cause << "' in: " << result.errors;
    const size_t message = result.errors.rfind("ringlet: ");
    ASSERT_NE(message, std::string::npos) << result.errors;
    EXPECT_EQ(std::ranges::count(result.errors.substr(message), '\n'), 2) << result.errors;
    EXPECT_LT(result.seconds, kRefusalSeconds);
  }
};

TEST_F(ProgramTest, InterruptedAndResumedIsTheSameRun) {
  const std::vector<std::string> longer{"--set", "train.steps=400"};
  ASSERT_EQ(run(training("whole", longer)).exit_code, 0);
  for (const int signal : {SIGTERM, SIGINT}) {
    const std::string name = signal == SIGTERM ? "terminated" : "interrupted";
    Program program(RINGLET_PROGRAM, training(name, longer), folder);
    wait_for_step(name, 13);
    program.send(signal);
    const ProgramResult first = program.finish();
    EXPECT_EQ(first.exit_code, 0) << first.errors;
    EXPECT_LT(losses(name).rbegin()->first, 400);
    std::vector<std::string> resume = longer;
    resume.push_back("--resume");
    const ProgramResult second = run(training(name, resume));
    EXPECT_EQ(second.exit_code, 0) << second.errors;
    EXPECT_NE(second.errors.find("resuming"), std::string::npos) << second.errors;
    EXPECT_EQ(losses(name), losses("whole"));
  }
}

// The first signal is heeded at the end of the step, and this step has no end.
TEST_F(ProgramTest, ASecondSignalEndsTheProgramAtOnce) {
  for (const auto& [first, second] : {std::pair{SIGTERM, SIGTERM}, {SIGINT, SIGTERM}, {SIGTERM, SIGINT}}) {
    const std::string name = "hurry-" + std::to_string(first) + "-" + std::to_string(second);
    Program program(RINGLET_PROGRAM, training(name, {"--set", "train.batch_windows=100000"}), folder);
    const fs::path config = folder / "runs" / name / "config.toml";  // written behind the signal handlers
    for (int i = 0; i < 10'000 && !fs::exists(config); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ASSERT_TRUE(fs::exists(config));
    program.send(first);
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    ASSERT_TRUE(program.running()) << "the first signal ended it";
    program.send(second);
    const auto sent = std::chrono::steady_clock::now();
    EXPECT_EQ(program.finish().exit_code, 128 + second);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - sent;
    EXPECT_LT(taken.count(), kRefusalSeconds);
    EXPECT_FALSE(has_checkpoints(folder / "runs" / name / "checkpoints"));
  }
}

TEST_F(ProgramTest, KilledAndResumedIsTheSameRun) {
  const std::vector<std::string> longer{"--set", "train.steps=400"};
  ASSERT_EQ(run(training("whole", longer)).exit_code, 0);
  Program program(RINGLET_PROGRAM, training("killed", longer), folder);
  wait_for_step("killed", 24);
  program.send(SIGKILL);
  EXPECT_EQ(program.finish().exit_code, 128 + SIGKILL);
  const ProgramResult second =
      run(training("killed", {"--resume", "--set", "train.steps=400"}));
  EXPECT_EQ(second.exit_code, 0) << second.errors;
  EXPECT_NE(second.errors.find("resuming"), std::string::npos) << second.errors;
  EXPECT_EQ(losses("killed"), losses("whole"));
}

TEST_F(ProgramTest, ResumesFromTheStartAfterAKillInTheFirstSave) {
  fs::create_directories(folder / "runs/first/checkpoints/step_00000010.tmp");
  const ProgramResult result = run(training("first", {"--resume"}));
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_NE(result.errors.find("starting from step 0"), std::string::npos) << result.errors;
}

TEST_F(ProgramTest, EvaluationEqualsWhatTrainingPrints) {
  ASSERT_EQ(run(training("book", {"--set", "train.eval_every=40"})).exit_code, 0);
  const std::string metrics = file_text(folder / "runs/book/metrics.jsonl");
  const size_t last = metrics.rfind('\n', metrics.size() - 2);
  const double printed = Json::parse(metrics.substr(last + 1))["eval_loss"];
  const auto evaluated = [&](const std::string& ranks) {
    const ProgramResult result = run({"eval", "runs/book", "--windows", "4", "--ranks", ranks, "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return double(Json::parse(result.output)["loss"]);
  };
  EXPECT_EQ(evaluated("2"), printed);
  for (const char* ranks : {"1", "3", "5"}) EXPECT_NEAR(evaluated(ranks), printed, 1e-5 * printed);
}

TEST_F(ProgramTest, EvaluationComparesContexts) {
  ASSERT_EQ(run(training("book")).exit_code, 0);
  const ProgramResult result = run({"eval", "runs/book", "--compare-context", "24", "--bigram", corpus,
                                    "--by-position", "--csv", "positions.csv"});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  for (const char* words : {"bits per byte", "bigram", "full context", "first quarter"}) {
    EXPECT_NE(result.output.find(words), std::string::npos) << words << " in " << result.output;
  }
  EXPECT_GT(file_text(folder / "positions.csv").size(), 100u);
}

TEST_F(ProgramTest, GeneratesTheSameTextForTheSameSeed) {
  ASSERT_EQ(run(training("book")).exit_code, 0);
  const auto text = [&](const std::string& seed) {
    const ProgramResult result = run({"generate", "runs/book", "--prompt", "ring", "--tokens", "40",
                                      "--seed", seed, "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return Json::parse(result.output)["text"].get<std::string>();
  };
  EXPECT_EQ(text("5"), text("5"));
  EXPECT_NE(text("5"), text("6"));
}

TEST_F(ProgramTest, RefusesBadCorpora) {
  const auto with_corpus = [&](const std::string& path) {
    return run(training("bad", {"--set", "data.corpus=" + path}));
  };
  expect_refusal(with_corpus("missing.h5"), 1, "missing.h5");
  write_text(folder / "empty.h5", "");
  expect_refusal(with_corpus("empty.h5"), 1, "empty.h5");
  write_text(folder / "text.h5", std::string(5000, 'x'));
  expect_refusal(with_corpus("text.h5"), 1, "text.h5");
  const std::string whole = file_text(corpus);
  write_text(folder / "cut.h5", whole.substr(0, whole.size() / 2));
  expect_refusal(with_corpus("cut.h5"), 1, "cut.h5");
  expect_refusal(run(training("bad", {"--set", "run.seq_len=1000000"})), 1, "tokens");
}

TEST_F(ProgramTest, RefusesBadConfigs) {
  write_text(folder / "typo.toml", "[model]\nwitdh = 3\n");
  const ProgramResult typo = run({"train", "typo.toml"});
  expect_refusal(typo, 2, "typo.toml:2");
  EXPECT_NE(typo.errors.find("model.width"), std::string::npos) << typo.errors;
  write_text(folder / "type.toml", "[model]\nwidth = \"wide\"\n");
  expect_refusal(run({"train", "type.toml"}), 2, "type.toml:2");
  expect_refusal(run(training("bad", {"--ranks", "0"})), 2, "ranks");
  expect_refusal(run(training("bad", {"--set", "model.kv_heads=3"})), 2, "kv_heads");
  expect_refusal(run(training("bad", {"--set", "run.ring=3"})), 2, "ring");
  expect_refusal(run({"train", "nowhere.toml"}), 2, "nowhere.toml");
}

TEST_F(ProgramTest, RefusesARunFolderThatIsInUseOrTakenOrCannotBe) {
  Program first(RINGLET_PROGRAM, training("shared", {"--set", "train.steps=100000"}), folder);
  wait_for_step("shared", 3);
  expect_refusal(run(training("shared", {"--resume"})), 1, "another ringlet");
  first.send(SIGTERM);
  EXPECT_EQ(first.finish().exit_code, 0);
  const ProgramResult taken = run(training("shared"));
  expect_refusal(taken, 1, "checkpoints");
  EXPECT_NE(taken.errors.find("--resume"), std::string::npos) << taken.errors;
  write_text(folder / "file", "not a folder");
  expect_refusal(run(training("bad", {"--set", "run.folder=file"})), 1, "file");
}

TEST_F(ProgramTest, RefusesCheckpointsThatDoNotFitAndSkipsDamagedOnes) {
  ASSERT_EQ(run(training("book")).exit_code, 0);
  const std::vector<std::string> longer{"--resume", "--set", "train.steps=42"};
  const auto with = [&](const std::string& setting) {
    std::vector<std::string> more = longer;
    more.insert(more.end(), {"--set", setting});
    return run(training("book", more));
  };
  expect_refusal(with("model.width=64"), 1, "embedding.weight");
  expect_refusal(with("model.kv_heads=2"), 1, "qkv");
  expect_refusal(with("model.rope_base=77"), 1, "rope_base");
  expect_refusal(with("data.corpus=" + validation), 1, "corpus");
  const std::string numbers = token_corpus();
  expect_refusal(with("data.corpus=" + numbers), 1, "tokenizer");
  expect_refusal(with("data.validation=" + numbers), 1, "tokenizer");
  expect_refusal(run({"eval", "runs/book", "--corpus", numbers}), 1, "tokenizer");

  const fs::path newest = folder / "runs/book/checkpoints/step_00000040/model.safetensors";
  std::string bytes = file_text(newest);
  bytes[bytes.size() / 2] ^= 4;
  write_text(newest, bytes);
  const ProgramResult resumed = run(training("book", longer));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.errors;
  EXPECT_NE(resumed.errors.find("skipped"), std::string::npos) << resumed.errors;
  EXPECT_NE(resumed.errors.find("step_00000030"), std::string::npos) << resumed.errors;

  expect_refusal(run({"eval", "runs/nothing"}), 1, "runs/nothing");
  expect_refusal(run({"generate", "runs/book", "--top-p", "0"}), 2, "top-p");
}

}  // namespace
}  // namespace ringlet::test
