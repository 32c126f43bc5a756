// The program as a user runs it: prepare, train, interrupt, kill, resume, evaluate, generate, and what he may get wrong.
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/support/program.h"
#include "tests/support/sanitized.h"
#include "tests/support/training_case.h"

namespace ringlet::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr double kRefusalSeconds = kSanitized ? 30 : 2;  // instrumented code says nothing about time

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

// A stage ends at step 150, another at 225.
TEST_F(ProgramTest, InterruptedInAnyStageAndResumedIsTheSameRun) {
  const auto staged = [&](const std::string& name, bool resume) {
    std::vector<std::string> arguments = training(name);
    std::string text = file_text(arguments[1]);
    text.replace(text.find("steps = 40\n"), 11, "");
    write_text(arguments[1],
               text +
                   "[[stage]]\ntokens = 7200\nseq_len = 48\n[[stage]]\ntokens = 7200\n"
                   "[[stage]]\ntokens = 9600\nseq_len = 200\n");
    if (resume) arguments.push_back("--resume");
    return arguments;
  };
  const ProgramResult whole = run(staged("whole", false));
  ASSERT_EQ(whole.exit_code, 0) << whole.errors;
  EXPECT_NE(whole.errors.find("stage 2 of 3: T = 96, rope base"), std::string::npos)
      << whole.errors;
  EXPECT_NE(whole.errors.find("stage 3: predicted beside measured"), std::string::npos)
      << whole.errors;
  for (const int64_t step : {20, 160, 230}) {
    Program program(RINGLET_PROGRAM, staged("parts", step > 20), folder);
    wait_for_step("parts", step);
    program.send(SIGTERM);
    const ProgramResult stopped = program.finish();
    EXPECT_EQ(stopped.exit_code, 0) << stopped.errors;
  }
  const ProgramResult last = run(staged("parts", true));
  EXPECT_EQ(last.exit_code, 0) << last.errors;
  EXPECT_EQ(losses("parts").size(), 273u);
  EXPECT_EQ(losses("parts"), losses("whole"));
  const ProgramResult evaluated = run({"eval", "runs/parts", "--windows", "2", "--json"});
  EXPECT_EQ(Json::parse(evaluated.output)["seq_len"], 200) << evaluated.errors;
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

TEST_F(ProgramTest, AnEvaluationThatAKillHasCostIsMadeWhenTheRunGoesOn) {
  const std::vector<std::string> settings{"--set", "train.eval_every=40"};
  ASSERT_EQ(run(training("book", settings)).exit_code, 0);
  const fs::path file = folder / "runs/book/metrics.jsonl";
  const std::string metrics = file_text(file);
  const size_t last = metrics.rfind('\n', metrics.size() - 2) + 1;
  ASSERT_NE(metrics.find("eval_loss", last), std::string::npos);
  fs::resize_file(file, last);
  std::vector<std::string> again = settings;
  again.push_back("--resume");
  for (int times = 0; times < 2; ++times) {  // once is enough
    const ProgramResult result = run(training("book", again));
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_NE(result.errors.find("nothing is left to train"), std::string::npos) << result.errors;
    EXPECT_EQ(file_text(file), metrics);
  }
}

TEST_F(ProgramTest, EvaluationComparesContexts) {
  ASSERT_EQ(run(training("book")).exit_code, 0);
  const ProgramResult result =
      run({"eval", "runs/book", "--compare-context", "24", "--bigram", corpus});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  for (const char* words : {"bits per byte", "bigram", "full context", "first quarter"}) {
    EXPECT_NE(result.output.find(words), std::string::npos) << words << " in " << result.output;
  }
}

/// The rows of one list in eval --json, as --csv writes them.
std::vector<std::string> csv_rows(const std::string& by, const Json& bins) {
  std::vector<std::string> rows;
  for (const Json& bin : bins) {
    if (bin["tokens"] == 0) continue;
    const Json& error = bin["standard_error"];
    rows.push_back(fmt::format("{},{},{},{},{:.9g},{}", by, bin["first"].get<int64_t>(),
                               bin["last"].get<int64_t>(), bin["tokens"].get<int64_t>(),
                               bin["loss"].get<double>(),
                               error.is_null() ? "" : fmt::format("{:.9g}", error.get<double>())));
  }
  return rows;
}

TEST_F(ProgramTest, EvaluationTellsTheLossByPositionAndByDistance) {
  ASSERT_EQ(run(training("book", {"--set", "train.eval_every=40"})).exit_code, 0);
  for (const char* key : {"\"loss\"", "\"eval_loss\""}) {  // records of both kinds
    std::istringstream lines(file_text(folder / "runs/book/metrics.jsonl"));
    std::string line;
    while (std::getline(lines, line) && line.find(key) == std::string::npos) {
    }
    for (const char* list : {"loss_by_position", "loss_by_distance"}) {
      EXPECT_EQ(Json::parse(line)[list]["mean"].size(), 8u) << list << " in " << line;  // T = 96
    }
  }
  const ProgramResult result = run({"eval", "runs/book", "--csv", "positions.csv", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const Json json = Json::parse(result.output);
  const Corpus text = Corpus::open(validation);
  EXPECT_EQ(json["tokens"], text.token_count());
  // Two of the three documents begin inside a window; no document's first byte is predicted.
  EXPECT_EQ(json["by_position"][0]["tokens"], json["windows"]);
  EXPECT_EQ(json["by_distance"][0]["tokens"], json["windows"].get<int64_t>() + 2);
  EXPECT_NEAR(json["bits_per_byte"].get<double>(),
              json["loss"].get<double>() * double(text.token_count()) /
                  (double(text.token_count() - 3) * std::log(2)), 1e-9);
  EXPECT_FALSE(json.contains("in_context_score"));
  std::vector<std::string> expected{"by,first,last,tokens,loss,standard_error"}, rows;
  for (const std::string by : {"position", "distance"}) {
    double tokens = 0, sum = 0;
    for (const Json& bin : json["by_" + by]) {
      tokens += bin["tokens"].get<double>();
      sum += bin["tokens"].get<double>() * bin["loss"].get<double>();
    }
    EXPECT_EQ(tokens, json["tokens"].get<double>());
    EXPECT_NEAR(sum / tokens, json["loss"].get<double>(), 1e-12);
    for (const std::string& row : csv_rows(by, json["by_" + by])) expected.push_back(row);
  }
  std::istringstream csv(file_text(folder / "positions.csv"));
  for (std::string row; std::getline(csv, row);) rows.push_back(row);
  EXPECT_EQ(rows, expected);
}

TEST_F(ProgramTest, EvaluationPrintsTheSecondTableWhereItDiffers) {
  ASSERT_EQ(run(training("book")).exit_code, 0);
  const std::string one = make_corpus(temporary, 1, "one");
  const auto printed = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", "runs/book"});
    const ProgramResult result = run(more);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return result.output;
  };
  const std::string first = "\nposition  ", second = "\ndistance into the document  ";
  const std::string several = printed({"--by-position"}), whole = printed({"--by-position", "--corpus", one});
  EXPECT_NE(several.find(first), std::string::npos) << several;
  EXPECT_NE(several.find(second), std::string::npos) << several;
  EXPECT_NE(several.find("\n64-95 "), std::string::npos) << several;
  EXPECT_NE(whole.find(first), std::string::npos) << whole;
  EXPECT_EQ(whole.find(second), std::string::npos) << whole;
  EXPECT_EQ(several.find("in-context score"), std::string::npos) << several;
  const std::string plain = printed({"--seq-len", "525"});
  EXPECT_EQ(plain.find(first), std::string::npos) << plain;
  EXPECT_NE(plain.find("in-context score"), std::string::npos) << plain;
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

TEST_F(ProgramTest, ARunInBf16IsEvaluatedAndGeneratesText) {
  const std::vector<std::string> in_bf16{"--dtype", "bf16", "--set", "train.eval_every=40"};
  ASSERT_EQ(run(training("short", in_bf16)).exit_code, 0);
  const std::string metrics = file_text(folder / "runs/short/metrics.jsonl");
  const double printed = Json::parse(metrics.substr(metrics.rfind('\n', metrics.size() - 2) + 1))["eval_loss"];
  for (const char* ranks : {"2", "1", "3"}) {
    const ProgramResult result = run({"eval", "runs/short", "--windows", "4", "--ranks", ranks, "--json"});
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    const double loss = Json::parse(result.output)["loss"];
    EXPECT_NEAR(loss, printed, std::string(ranks) == "2" ? 0 : 5e-3 * printed) << ranks;
  }
  const auto text = [&] {
    const ProgramResult result = run({"generate", "runs/short", "--prompt", "ring", "--tokens", "40", "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return Json::parse(result.output)["text"].get<std::string>();
  };
  const std::string generated = text();
  EXPECT_GE(generated.size(), 1u);
  EXPECT_EQ(text(), generated);
}

// A run trained on a GPU is of use where there is none. The program in a folder of its own has no CUDA module.
TEST_F(ProgramTest, EvaluatesAndGeneratesOnTheDeviceThatIsAskedFor) {
  ASSERT_EQ(run(training("book")).exit_code, 0);
  const fs::path alone = folder / "ringlet";
  fs::copy_file(RINGLET_PROGRAM, alone);
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"eval", "runs/book"}, {"generate", "runs/book", "--tokens", "3"}}) {
    for (const std::string device : {"cpu", "cuda"}) {
      std::vector<std::string> words = command;
      words.insert(words.end(), {"--device", device});
      const ProgramResult result = run_program(alone, words, folder);
      if (device == "cuda") {
        expect_refusal(result, 1, "no CUDA: module not built");
      } else {
        EXPECT_EQ(result.exit_code, 0) << result.errors;
      }
    }
  }
}

#if defined(__x86_64__)
TEST_F(ProgramTest, EveryCommandThatComputesSaysOnceWhenItsKernelsAreSlow) {
  const std::string warning = "warning: without AVX2 or AVX-512 training is several times slower\n";
  const auto run_slowly = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"RINGLET_ISA=portable", RINGLET_PROGRAM});
    return run_program("/usr/bin/env", arguments, folder);
  };
  const std::vector<std::vector<std::string>> commands{
      training("slow", {"--set", "train.steps=1"}), {"eval", "runs/slow"}, {"generate", "runs/slow", "--tokens", "2"},
      {"verify", "--quick"}, {"profile", "slow.toml", "--steps", "1", "-o", "profile"},
      {"scale", "slow.toml", "--seq-len", "96", "--ranks", "1,2", "--steps", "1", "-o", "scale"}};
  for (const std::vector<std::string>& arguments : commands) {
    const ProgramResult result = run_slowly(arguments);
    EXPECT_EQ(result.exit_code, 0) << arguments[0] << ": " << result.errors;
    const size_t at = result.errors.find(warning);
    ASSERT_NE(at, std::string::npos) << arguments[0] << ": " << result.errors;
    EXPECT_EQ(result.errors.find(warning, at + 1), std::string::npos) << arguments[0];
  }
  if (!__builtin_cpu_supports("avx2")) return;
  const ProgramResult usual = run_program("/usr/bin/env", {"-u", "RINGLET_ISA", RINGLET_PROGRAM, "eval", "runs/slow"}, folder);
  EXPECT_EQ(usual.exit_code, 0) << usual.errors;
  EXPECT_EQ(usual.errors.find(warning), std::string::npos) << usual.errors;
}
#endif

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

// Where messages cannot be shown (a full disk, a closed terminal) the training goes on and is saved.
TEST_F(ProgramTest, ATrainingOutlivesTheEndOfItsMessages) {
  std::string words;
  for (const std::string& word : training("mute", {"--steps", "12"})) words += " '" + word + "'";
  const auto muted = [&](const std::string& arguments) {
    return run_program("/bin/sh", {"-c", RINGLET_PROGRAM + (arguments + " 2>/dev/full")}, folder).exit_code;
  };
  EXPECT_EQ(muted(words), 0);
  EXPECT_TRUE(fs::exists(folder / "runs/mute/checkpoints/step_00000012"));
  EXPECT_EQ(muted(" train nothing.toml"), 2);
  EXPECT_EQ(muted(""), 2);
}

}  // namespace
}  // namespace ringlet::test
