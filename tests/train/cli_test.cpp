#include "train/cli.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace ringlet {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

Command parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "ringlet");
  return parse_command_line(int(arguments.size()), arguments.data());
}

template <class Options>
Options parse_as(const std::vector<const char*>& arguments) {
  return std::get<Options>(parse(arguments));
}

struct Finished {
  int code;
  std::string output;
};

/// Runs the program through the shell; `arguments` may redirect.
Finished run(const std::string& arguments) {
  std::FILE* pipe = popen((std::string(RINGLET_PROGRAM) + " " + arguments).c_str(), "r");
  std::string output;
  std::array<char, 4096> block;
  while (const size_t n = std::fread(block.data(), 1, block.size(), pipe))
    output.append(block.data(), n);
  return {WEXITSTATUS(pclose(pipe)), output};
}

const std::vector<const char*> kCommands{"prepare", "inspect",  "train",
                                         "eval",    "generate", "plan", "verify", "explain", "profile", "scale", "study",
                                         "report", "doctor"};

TEST(CommandLine, EveryCommandHasHelpWithAnExample) {
  const std::string all = parse_as<HelpText>({"--help"}).text;
  for (const char* command : kCommands) {
    EXPECT_THAT(all, HasSubstr(command));
    const std::string text = parse_as<HelpText>({command, "--help"}).text;
    EXPECT_THAT(text, HasSubstr("Example"));
    EXPECT_THAT(text, HasSubstr(std::string("ringlet ") + command));
  }
}

TEST(CommandLine, HelpShowsDefaultsThatAreValues) {
  EXPECT_THAT(parse_as<HelpText>({"generate", "--help"}).text, testing::ContainsRegex("--tokens N.*256.*Tokens to write"));
  EXPECT_THAT(parse_as<HelpText>({"eval", "--help"}).text, testing::ContainsRegex("--windows N +Windows"));  // all: no number
}

TEST(CommandLine, TrainOptionsBecomeOverridesInTheirOrder) {
  const auto options =
      parse_as<TrainOptions>({"train", "--set", "model.width=64", "c.toml", "--ranks", "4",
                              "--set=run.name=a=b", "--seq-len", "100", "--resume"});
  EXPECT_EQ(options.config, "c.toml");
  EXPECT_EQ(options.resume, ResumeChoice::newest);
  EXPECT_THAT(options.overrides, testing::UnorderedElementsAre("model.width=64", "run.name=a=b",
                                                               "run.ranks=4", "run.seq_len=100"));
  EXPECT_EQ(parse_as<TrainOptions>({"train", "c.toml"}).resume, ResumeChoice::no);
  EXPECT_THAT(parse_as<TrainOptions>({"train", "c.toml", "--comm", "nccl"}).overrides, ElementsAre("run.comm=nccl"));
}

TEST(CommandLine, PrepareOptions) {
  const auto [options, format] = parse_as<PrepareCommand>({"prepare",
                                                           "a",
                                                           "b",
                                                           "-",
                                                           "-o",
                                                           "c.h5",
                                                           "--format",
                                                           "jsonl",
                                                           "--document",
                                                           "directory",
                                                           "--tokenizer",
                                                           "sentencepiece",
                                                           "--vocabulary",
                                                           "512",
                                                           "--validation",
                                                           "0.1",
                                                           "--field",
                                                           "body",
                                                           "--split",
                                                           "test",
                                                           "--json"});
  EXPECT_THAT(options.input.paths, ElementsAre("a", "b", "-"));
  EXPECT_EQ(options.output, "c.h5");
  EXPECT_EQ(options.input.format, InputFormat::jsonl);
  EXPECT_EQ(options.input.unit, DocumentUnit::directory);
  EXPECT_EQ(options.input.json_field, "body");
  EXPECT_EQ(options.tokenizer, "sentencepiece");
  EXPECT_EQ(options.vocabulary, 512);
  EXPECT_EQ(options.validation_share, 0.1);
  EXPECT_EQ(options.split, "test");
  EXPECT_EQ(format, OutputFormat::json);
}

TEST(CommandLine, PrepareATask) {
  const auto options = parse_as<PrepareCommand>({"prepare", "--task", "passkey", "--text", "book.txt", "--seq-len", "4k",
                                                 "--distance", "100..2k", "--samples", "20", "--items", "6", "--seed",
                                                 "3", "-o", "c.h5"})
                           .options;
  EXPECT_EQ(options.task.name, "passkey");
  EXPECT_EQ(options.task.text, "book.txt");
  EXPECT_EQ(options.task.seq_len, 4096);
  EXPECT_EQ(options.task.least_distance, 100);
  EXPECT_EQ(options.task.most_distance, 2048);
  EXPECT_EQ(options.samples, 20);
  EXPECT_EQ(options.task.items, 6);
  EXPECT_EQ(options.task.seed, 3);
  const auto one = parse_as<PrepareCommand>({"prepare", "--task", "copy", "--distance", "50", "-o", "c.h5"}).options;
  EXPECT_EQ(one.task.least_distance, 50);
  EXPECT_EQ(one.task.most_distance, 50);
  for (const char* wrong : {"9..5", "..5", "5..", "a", "0..4", "-3"}) {
    EXPECT_THROW(parse({"prepare", "--task", "copy", "-o", "c.h5", "--distance", wrong}), UsageError) << wrong;
  }
}

TEST(CommandLine, InspectEvalGenerateAndDoctorOptions) {
  const auto inspect = parse_as<InspectOptions>({"inspect", "x.h5", "--verify"});
  EXPECT_EQ(inspect.path, "x.h5");
  EXPECT_EQ(inspect.check, CorpusCheck::everything);
  EXPECT_EQ(inspect.format, OutputFormat::text);
  const auto eval = parse_as<EvalOptions>(
      {"eval", "runs/a", "--corpus", "v.h5", "--seq-len", "9", "--ranks", "3", "--windows", "2",
       "--by-position", "--compare-context", "4", "--bigram", "t.h5", "--csv", "p.csv", "--json"});
  EXPECT_EQ(eval.run, "runs/a");
  EXPECT_EQ(eval.corpus, "v.h5");
  EXPECT_EQ(eval.seq_len, 9);
  EXPECT_EQ(eval.ranks, 3);
  EXPECT_EQ(eval.windows, 2);
  EXPECT_TRUE(eval.by_position);
  EXPECT_EQ(eval.compare_context, 4);
  EXPECT_EQ(eval.bigram_corpus, "t.h5");
  EXPECT_EQ(eval.csv, "p.csv");
  EXPECT_EQ(eval.format, OutputFormat::json);
  const auto generate = parse_as<GenerateOptions>(
      {"generate", "runs/a", "--prompt", "In the", "--tokens", "7", "--temperature", "0.5",
       "--top-k", "3", "--top-p", "0.9", "--seed", "5"});
  EXPECT_EQ(generate.prompt, "In the");
  EXPECT_EQ(generate.tokens, 7);
  EXPECT_EQ(generate.sampling.temperature, 0.5);
  EXPECT_EQ(generate.sampling.top_k, 3);
  EXPECT_EQ(generate.sampling.top_p, 0.9);
  EXPECT_EQ(generate.seed, 5);
  EXPECT_EQ(parse_as<DoctorCommand>({"doctor", "--json"}).format, OutputFormat::json);
}

TEST(CommandLine, ACommandThatIsNotThereIsNamed) {
  try {
    parse({"trian", "x.toml"});
    ADD_FAILURE();
  } catch (const UsageError& error) {
    EXPECT_STREQ(error.what(), "there is no command \"trian\"");
  }
}

TEST(CommandLine, WrongUsageIsAUsageErrorWithAdvice) {
  const std::vector<std::vector<const char*>> cases{
      {"trian"},
      {"train"},
      {"train", "c.toml", "--rank", "4"},
      {"train", "c.toml", "--set"},
      {"train", "a.toml", "b.toml"},
      {"prepare", "a"},
      {"prepare", "a", "-o", "c.h5", "--format", "pdf"},
      {"prepare", "a", "-o", "c.h5", "--validation", "2"},
      {"prepare", "a", "-o", "c.h5", "--samples", "20"},
      {"prepare", "--task", "mqar", "-o", "c.h5", "--tokenizer", "byte"},
      {"eval", "runs/a", "--ranks", "0"},
      {"eval", "runs/a", "--ranks", "two"},
      {"generate", "runs/a", "--temperature", "-1"},
      {"generate", "runs/a", "--tokens", "99999999999999999999"},
      {"inspect"},
      {"doctor", "now"},
  };
  for (const auto& arguments : cases) {
    try {
      parse(arguments);
      ADD_FAILURE() << arguments[0] << " was accepted";
    } catch (const UsageError& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
      EXPECT_THAT(error.advice, HasSubstr("--help"));
    }
  }
}

TEST(Program, ExitCodesAndStreams) {
  EXPECT_EQ(run("2>/dev/null").code, 2);
  EXPECT_THAT(run("2>&1 >/dev/null").output, HasSubstr("Usage"));
  EXPECT_EQ(run("--help").code, 0);
  EXPECT_EQ(run("nonsense 2>&1 >/dev/null").code, 2);
  EXPECT_EQ(run("train /nowhere.toml 2>&1 >/dev/null").code, 2);
  EXPECT_EQ(run("inspect /nowhere 2>/dev/null").code, 1);
  EXPECT_EQ(run("inspect /nowhere 2>/dev/null").output, "");
}

TEST(Program, AnErrorIsOneLineOfWhyAndOneOfWhatToDo) {
  for (const char* arguments :
       {"inspect /nowhere", "nonsense", "train /nowhere.toml", "eval /nowhere", "generate /nowhere",
        "prepare /nowhere -o /tmp/x.h5", "prepare --task recall -o /tmp/x.h5"}) {
    const Finished finished = run(std::string(arguments) + " 2>&1 >/dev/null");
    EXPECT_NE(finished.code, 0) << arguments;
    EXPECT_EQ(std::count(finished.output.begin(), finished.output.end(), '\n'), 2)
        << arguments << ":\n"
        << finished.output;
    EXPECT_TRUE(finished.output.starts_with("ringlet: ")) << finished.output;
  }
}

TEST(Program, DoctorSaysWhatTheMachineHas) {
  const Finished text = run("doctor");
  EXPECT_EQ(text.code, 0);
  const Finished finished = run("doctor --json");
  EXPECT_EQ(finished.code, 0);
  const auto json = nlohmann::json::parse(finished.output);
  ASSERT_GE(json["findings"].size(), 5u);  // and one for each GPU
  for (const auto& finding : json["findings"]) {
    EXPECT_FALSE(finding["value"].get<std::string>().empty());
    EXPECT_THAT(text.output, HasSubstr(finding["name"].get<std::string>()));
  }
}

TEST(Program, InspectTellsACorpusACheckpointAndARunApart) {
  const fs::path folder =
      fs::path(testing::TempDir()) / ("ringlet-inspect-" + std::to_string(getpid()));
  fs::create_directories(folder);
  std::ofstream(folder / "text.txt") << std::string(2000, 'a') + std::string(2000, 'b');
  std::ofstream(folder / "small.toml") << "[model]\nlayers = 1\nwidth = 16\nheads = 2\n"
                                          "[run]\nseq_len = 64\nranks = 2\n[train]\nsteps = 2\n";
  const std::string corpus = (folder / "c.h5").string(), runs = (folder / "runs").string();
  ASSERT_EQ(run("prepare " + (folder / "text.txt").string() + " -o " + corpus + " >/dev/null").code,
            0);
  ASSERT_EQ(run("train " + (folder / "small.toml").string() + " --set data.corpus=" + corpus +
                " --set run.folder=" + runs + " >/dev/null 2>&1")
                .code,
            0);
  const auto inspect = [](const std::string& path, int code = 0) {
    const Finished finished = run("inspect --verify --json " + path + " 2>/dev/null");
    EXPECT_EQ(finished.code, code) << path;
    return nlohmann::json::parse(finished.output);
  };
  EXPECT_EQ(inspect(corpus)["token_count"], 4000);
  const auto whole = inspect(runs + "/small");
  EXPECT_EQ(whole["kind"], "run");
  EXPECT_EQ(whole["last_step"]["step"], 2);
  ASSERT_EQ(whole["checkpoints"].size(), 1u);
  const auto checkpoint = inspect(whole["checkpoints"][0]["path"]);
  EXPECT_EQ(checkpoint, whole["checkpoints"][0]);
  EXPECT_EQ(checkpoint["kind"], "checkpoint");
  EXPECT_EQ(checkpoint["step"], 2);
  EXPECT_EQ(checkpoint["ranks"], 2);

  // A damaged checkpoint does not hide the rest of the run, and is a failure.
  fs::resize_file(fs::path(checkpoint["path"].get<std::string>()) / "manifest.json", 10);
  EXPECT_FALSE(inspect(runs + "/small", 1)["checkpoints"][0]["damaged"].get<std::string>().empty());
  EXPECT_EQ(run("inspect " + folder.string() + " 2>/dev/null").code, 1);
  fs::remove_all(folder);
}

// Less than a buffer, and more: printing ends in the middle. Without a word, as other programs do.
TEST(Program, AReaderThatStopsReadingEndsIt) {
  const fs::path said = fs::temp_directory_path() / ("ringlet_reader_" + std::to_string(getpid()));
  for (const std::string arguments : {"--help", "explain --seq-len 64k --ranks 16"}) {
    const std::string program = RINGLET_PROGRAM " " + arguments + " 2>" + said.string();
    EXPECT_EQ(std::system(("{ sleep 0.2; " + program + "; echo $? >>" + said.string() + "; } | true").c_str()), 0);
    std::ifstream file(said);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    EXPECT_EQ(text, "141\n") << arguments;
  }
  fs::remove(said);
}

TEST(Program, OutputThatCannotBeWrittenIsAFailure) {
  EXPECT_EQ(run("--help 2>/dev/null >/dev/full").code, 1);
}

}  // namespace
}  // namespace ringlet
