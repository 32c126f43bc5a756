// `ringlet plan` as a user meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/check.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/console.h"
#include "train/plan/calibration.h"
#include "train/plan/device_profiles.h"
#include "train/units.h"

namespace ringlet::test {
namespace {

using testing::HasSubstr;

/// Runs `ringlet plan` on configs/tiny.toml with a cache of its own.
struct PlanProgram {
  TemporaryFolder folder;
  std::filesystem::path cache() const { return folder.path() / "cache"; }
  ProgramResult operator()(const std::string& words) const {
    std::vector<std::string> arguments{"XDG_CACHE_HOME=" + cache().string(), RINGLET_PROGRAM, "plan",
                                       RINGLET_SOURCE_DIR "/configs/tiny.toml"};
    std::istringstream stream(words);
    for (std::string word; stream >> word;) arguments.push_back(word);
    return run_program("/usr/bin/env", arguments, folder.path());
  }
};

TEST(PlanCommand, TellsMemoryTrafficAndWorkAndTimesOnceCalibrated) {
  const PlanProgram plan;
  const ProgramResult before = plan("--json");
  ASSERT_EQ(before.exit_code, 0) << before.errors;
  const auto json = nlohmann::json::parse(before.output);
  ASSERT_EQ(json["memory"].size(), 2u);
  int64_t sum = 0;
  for (const auto& [name, bytes] : json["memory"][0]["regions"].items()) sum += bytes.get<int64_t>();
  EXPECT_EQ(sum, json["memory"][0]["peak_bytes"]);
  EXPECT_GT(json["traffic"][1]["ring_bytes"], 0);
  EXPECT_FALSE(json.contains("step_seconds"));
  const auto in_bf16 = [](const nlohmann::json& planned) {
    for (const auto& knob : planned["knobs"]) {
      if (knob["name"] == "dtype bf16") return knob["peak_bytes"].get<int64_t>();
    }
    return int64_t{0};
  };
  const int64_t on_gpus = in_bf16(nlohmann::json::parse(plan("--device h200 --json").output));
  EXPECT_GT(on_gpus, sum / 2);
  EXPECT_LT(on_gpus, sum);
  EXPECT_GT(in_bf16(json), on_gpus);  // the processor computes in f32
  EXPECT_THAT(plan("").output, HasSubstr("--calibrate"));

  ASSERT_EQ(plan("--calibrate --json").exit_code, 0);
  const auto calibrated = nlohmann::json::parse(plan("--json").output);
  EXPECT_GT(calibrated["step_seconds"], 0);
  EXPECT_GT(calibrated["rates"]["foreign_bytes"], 0);
  EXPECT_GT(calibrated["rates"]["spread"], 0);
  EXPECT_THAT(plan("").output, AllOf(HasSubstr("predicted step"), HasSubstr("equal calls differed by")));

  for (const auto& file : std::filesystem::recursive_directory_iterator(plan.cache())) {
    if (file.is_regular_file()) std::ofstream(file.path()) << "{";
  }
  const ProgramResult damaged = plan("");
  EXPECT_EQ(damaged.exit_code, 1);
  EXPECT_THAT(damaged.errors, HasSubstr("measure anew"));
}

// The GPUs may be those of another machine.
TEST(PlanCommand, OffloadsToTheHostOfGpusThatAreNotHere) {
  const PlanProgram plan;
  const std::string gpus = "--set run.device=cuda --set model.layers=6 --device h200";
  const ProgramResult text = plan(gpus + " --set memory.offload=host");
  ASSERT_EQ(text.exit_code, 0) << text.errors;
  // 5 inputs of 256 rows and 64 columns, in f32.
  EXPECT_THAT(text.output, HasSubstr("wait in " + human_bytes(5 * 256 * 64 * 4) + " of pinned host memory"));
  EXPECT_THAT(plan(gpus).output, HasSubstr("offload to the host"));
  const auto peak = [&](const std::string& words) {
    return nlohmann::json::parse(plan(words + " --json").output)["memory"][0]["peak_bytes"].get<int64_t>();
  };
  EXPECT_LT(peak(gpus + " --set memory.offload=host"), peak(gpus));
}

TEST(PlanCommand, BadInputIsOneLineAndAdvice) {
  const PlanProgram plan;
  const auto expect = [&](const std::string& arguments, int code, const std::string& cause, const std::string& advice) {
    const ProgramResult result = plan(arguments);
    EXPECT_EQ(result.exit_code, code) << arguments;
    EXPECT_THAT(result.errors, HasSubstr(cause)) << arguments;
    EXPECT_THAT(result.errors, HasSubstr(advice)) << arguments;
    EXPECT_EQ(std::ranges::count(result.errors, '\n'), 2) << result.errors;
  };
  expect("--device tpu9", 2, "no device is called \"tpu9\"", "\"h200\", \"h100\", \"a100\"");
  expect("--link fast", 2, "\"fast\" is not a link", "450GB/s,3us");
  expect("--link 0.5B/s", 2, "is not a link", "450GB/s,3us");
  expect("--device h200 --calibrate", 2, "--calibrate measures this machine", "leave --device out");
  expect("--budget plenty", 2, "\"plenty\" is not a number of bytes", "80GiB");
  expect("--budget 100KiB", 1, "below the weights", "give at least");
  expect("--budget 1700KiB --max-context", 1, "not even T = 1024 fits", "--budget");
  expect("--budget 1700KiB --set memory.recompute=auto --seq-len 1048576", 1, "no recompute policy fits", "more ranks");
  expect("--ranks 3 --ring 2", 2, "run.ring", "choose");
  expect("--tune", 1, "this machine is not calibrated", "--calibrate");
  expect("--tune --measure --device h200", 2, "--measure runs on this machine", "leave --device");
  expect("--measure", 2, "--measure requires --tune", "--help");
  expect("--tune --device h200 --budget 900KiB", 1, "settings fits into", "--budget");
  expect("--corpus nowhere.h5", 1, "nowhere.h5", "");
  expect("--windows 3 --set data.mask=causal", 2, "change nothing", "leave --corpus");
}

// Table 2 of arXiv:2310.01889 as printed there, within 5 %.
TEST(PlanCommand, PaperTableIsThePapers) {
  const PlanProgram plan;
  const ProgramResult paper = run_program(RINGLET_PROGRAM, {"plan", "--paper"}, plan.folder.path());
  ASSERT_EQ(paper.exit_code, 0) << paper.errors;
  std::istringstream stream(paper.output);
  int rows = 0;
  for (std::string line; std::getline(stream, line) && !line.starts_with("block c:");) {
    const size_t numbers = line.find_first_of("0123456789", 18);
    double block = 0, paper_block = 0, sequence = 0, paper_sequence = 0;
    if (numbers == std::string::npos ||
        !(std::istringstream(line.substr(numbers)) >> block >> paper_block >> sequence >> paper_sequence)) {
      continue;
    }
    EXPECT_NEAR(block, paper_block, 0.05 * paper_block) << line;
    EXPECT_NEAR(sequence, paper_sequence, 0.05 * paper_sequence) << line;
    ++rows;
  }
  EXPECT_EQ(rows, 5) << paper.output;
}

TEST(PlanCommand, TunesForALink) {
  const PlanProgram plan;
  const ProgramResult text = plan("--tune --device h200 --link 1GB/s,5us --ranks 4 --budget 1GiB");
  ASSERT_EQ(text.exit_code, 0) << text.errors;
  EXPECT_THAT(text.output, HasSubstr("settings for 4 ranks over 1GB/s,5us"));
  EXPECT_THAT(text.output, HasSubstr("as configured"));
  const ProgramResult result = plan("--tune --device h200 --link 1GB/s,5us --ranks 4 --budget 1GiB --json");
  const auto json = nlohmann::json::parse(result.output);
  EXPECT_EQ(json["tried"], json["settings"].size());
  EXPECT_TRUE(json.contains("first_hidden"));
}

TEST(PlanCommand, TellsOfTheWindowsOfACorpus) {
  const PlanProgram plan;
  const std::string corpus = make_corpus(plan.folder, 400);
  const ProgramResult text = plan("--corpus " + corpus + " --windows 5 --set train.batch_windows=2");
  ASSERT_EQ(text.exit_code, 0) << text.errors;
  EXPECT_THAT(text.output, HasSubstr("the first 6 windows of the run, 3 steps"));
  const ProgramResult result = plan("--json --ranks 4 --set data.corpus=" + corpus);
  const auto json = nlohmann::json::parse(result.output);
  ASSERT_EQ(json["corpus"]["steps"].size(), 1u);
  EXPECT_LT(json["corpus"]["steps"][0]["traffic"][1]["sent_bytes"], json["traffic"][1]["sent_bytes"]);
}

// "auto" resumes with what it began with, though there is room for more by then.
TEST(PlanCommand, AutoResumesAsItBegan) {
  const PlanProgram plan;
  const std::string corpus = make_corpus(plan.folder, 3);
  const auto train = [&](const std::string& name, const std::string& steps, const std::string& budget) {
    std::vector<std::string> words{"train", RINGLET_SOURCE_DIR "/configs/tiny.toml", "--name", name, "--steps", steps};
    if (std::filesystem::exists(plan.folder.path() / "runs" / name)) words.push_back("--resume");
    for (const std::string& setting : {"data.corpus=" + corpus, std::string("memory.recompute=auto"),
                                       std::string("run.verify=off"), "memory.arena_bytes=" + budget}) {
      words.insert(words.end(), {"--set", setting});
    }
    const ProgramResult result = run_program(RINGLET_PROGRAM, words, plan.folder.path());
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    const Config::Memory memory = load_config(plan.folder.path() / "runs" / name / "config.toml").memory;
    return std::tuple(memory.recompute, memory.head_chunk, memory.mlp_chunk);
  };
  const auto began = train("little", "1", "3500000"), roomy = train("roomy", "1", "100000000");
  EXPECT_NE(began, roomy);
  EXPECT_EQ(train("little", "2", "100000000"), began);
}

TEST(PlanCommand, PlansTheStageThatNeedsMost) {
  const PlanProgram plan;
  const std::filesystem::path config = plan.folder.path() / "stages.toml";
  std::ofstream(config)
      << "[model]\nlayers = 4\nwidth = 32\n[[stage]]\ntokens = 9000\nseq_len = 500\n"
         "[[stage]]\ntokens = 9000\nseq_len = 3000\n[[stage]]\ntokens = 9000\nseq_len = 1000\n";
  const auto run = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"XDG_CACHE_HOME=" + plan.cache().string(), RINGLET_PROGRAM, "plan",
                                 config.string()});
    return run_program("/usr/bin/env", words, plan.folder.path());
  };
  const auto fullest = nlohmann::json::parse(run({"--json"}).output),
             first = nlohmann::json::parse(run({"--stage", "1", "--json"}).output);
  EXPECT_EQ(fullest["stage"], 2);
  ASSERT_EQ(fullest["stages"].size(), 3u);
  EXPECT_EQ(fullest["stages"][1]["peak_bytes"], fullest["memory"][0]["peak_bytes"]);
  EXPECT_EQ(fullest["stages"][0]["peak_bytes"], first["memory"][0]["peak_bytes"]);
  EXPECT_EQ(fullest["stages"][0]["steps"], 18);
  int64_t all_recomputed = 0;
  for (const auto& knob : fullest["knobs"]) {
    if (knob["name"] == "recompute full") all_recomputed = knob["peak_bytes"];
  }
  const ProgramResult text = run({"--budget", std::to_string(all_recomputed)});
  EXPECT_THAT(text.output, HasSubstr("what follows is of stage 2, which needs most memory"));
  EXPECT_THAT(text.output, HasSubstr("does not fit; --set stage.2.recompute=full"));
  // The stage that is asked for has to fit, and no other.
  const std::vector<std::string> short_first{"--set", "stage.1.seq_len=64"};
  const auto with = [](std::vector<std::string> words, const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  const auto shortest =
      nlohmann::json::parse(run(with({"--stage", "1", "--json"}, short_first)).output);
  const std::vector<std::string> tight =
      with({"--set", "memory.recompute=auto", "--budget",
            std::to_string(shortest["memory"][0]["peak_bytes"].get<int64_t>())},
           short_first);
  const ProgramResult one = run(with({"--stage", "1"}, tight));
  EXPECT_EQ(one.exit_code, 0) << one.errors;
  EXPECT_THAT(one.output, HasSubstr("a rank: fits"));
  EXPECT_THAT(run(tight).errors, HasSubstr("stage 2: no recompute policy fits"));
  EXPECT_THAT(run(with({"--stage", "1"}, tight)).output, HasSubstr("stage 2 does not fit into"));
  const auto tuned = nlohmann::json::parse(
      run({"--tune", "--stage", "2", "--device", "h200", "--link", "1MB/s,5us", "--ranks", "2", "--json"}).output);
  std::string settings;
  for (const auto& setting : tuned["settings"]) settings += setting["set"].dump();
  EXPECT_THAT(settings, HasSubstr("\"stage.2.seq_len=6000\""));
  EXPECT_THAT(settings, HasSubstr("\"run.layout="));
  EXPECT_THAT(run({"--stage", "4"}).errors,
              HasSubstr("there is no stage 4: the config has 3\n  choose a --stage from 1 to 3"));
  const ProgramResult scale =
      run_program(RINGLET_PROGRAM, {"scale", config.string(), "-o", "study"}, plan.folder.path());
  EXPECT_EQ(scale.exit_code, 2);
  EXPECT_THAT(scale.errors, HasSubstr("has stages, and scale measures lengths of its own"));
}

TEST(PlanCommand, AThousandRanksAreSecondsAndMegabytes) {
  const PlanProgram plan;
  const ProgramResult large =
      plan("--ranks 1024 --seq-len 16777216 --set model.layers=32 --device h200 --json");
  ASSERT_EQ(large.exit_code, 0) << large.errors;
  const auto json = nlohmann::json::parse(large.output);
  EXPECT_FALSE(json["every_rank"]);
  EXPECT_GT(json["tokens_per_second"], 0);
  EXPECT_GT(json["knobs"].size(), 5u);
}

TEST(Rates, AMeasuredSizeSpeaksAloneAndOthersStandBetween) {
  Rates rates;
  rates.put(Op::copy, {{1000, 10, 1}, 1000, 1});      // 1000 a second
  rates.put(Op::copy, {{1'000'000, 10, 1}, 1e6, 10});  // 100,000 a second
  EXPECT_NEAR(rates.seconds(Op::copy, {1000, 10, 1}, 1000), 1, 1e-3);
  EXPECT_NEAR(rates.seconds(Op::copy, {1'000'000, 10, 1}, 1e6), 10, 1e-2);
  const double between = rates.seconds(Op::copy, {31'623, 10, 1}, 31'623);  // the middle of both
  EXPECT_NEAR(31'623 / between, 10'000, 10);
  EXPECT_EQ(rates.seconds(Op::add, {1, 1, 1}, 1), 0);
  rates.put(Op::copy, {{1000, 10, 1}, 1000, 2});  // measured again
  EXPECT_EQ(rates.samples(Op::copy).size(), 2u);
}

TEST(DeviceProfiles, APeakIsOfTheVeryGpu) {
  EXPECT_EQ(published_peak_flops("NVIDIA H200"), 989e12);
  EXPECT_EQ(published_peak_flops("NVIDIA H100 80GB HBM3"), 989e12);
  EXPECT_EQ(published_peak_flops("NVIDIA A100-SXM4-80GB"), 312e12);
  EXPECT_EQ(published_peak_flops("NVIDIA A100 80GB PCIe"), 312e12);
  for (const char* other : {"NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200 NVL", "NVIDIA RTX A1000", "NVIDIA GH200 480GB",
                            "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L4", ""}) {
    EXPECT_EQ(published_peak_flops(other), 0) << other;
  }
}

TEST(Links, AreReadInEveryUnit) {
  const Link link = parse_link("450GB/s,3us");
  EXPECT_DOUBLE_EQ(link.bytes_per_second, 450e9);
  EXPECT_DOUBLE_EQ(link.latency_seconds, 3e-6);
  EXPECT_DOUBLE_EQ(parse_link("1GiB/s").bytes_per_second, 1024.0 * 1024 * 1024);
  EXPECT_DOUBLE_EQ(parse_link("5MB/s,2ms").latency_seconds, 2e-3);
  EXPECT_GT(parse_link("nvlink4").bytes_per_second, 1e11);
  for (const char* wrong : {"", "450", "450GB", "GB/s", "-1GB/s", "0GB/s", "1XB/s", "1GB/s,", "1GB/s,3", "nanGB/s"}) {
    EXPECT_THROW(parse_link(wrong), UsageError) << wrong;
  }
  EXPECT_DOUBLE_EQ(parse_bytes("80GiB"), 80 * 1024.0 * 1024 * 1024);
  EXPECT_DOUBLE_EQ(parse_bytes("2GB"), 2e9);
  EXPECT_DOUBLE_EQ(parse_bytes("1000"), 1000);
  for (const char* wrong : {"", "GiB", "-1GiB", "1 furlong", "1e30GB", "inf"}) {
    EXPECT_THROW(parse_bytes(wrong), UsageError) << wrong;
  }
}

}  // namespace
}  // namespace ringlet::test
