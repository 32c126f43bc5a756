#include "train/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "kernels/check.h"
#include "train/config_keys.h"

namespace ringlet {
namespace {

using testing::HasSubstr;

Config parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "x.toml", overrides);
}

/// The error that reading `text` gives: "cause | advice".
std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const UsageError& error) {
    return std::string(error.what()) + " | " + error.advice;
  }
  return "no error";
}

std::filesystem::path config_file(const std::string& name) {
  return std::filesystem::path(RINGLET_SOURCE_DIR) / "configs" / name;
}

std::vector<std::string> names_of_keys() {
  Config config;
  std::vector<std::string> names;
  for (const ConfigKey& key : keys_of(config)) names.emplace_back(key.name);
  return names;
}

TEST(Config, DefaultsAreResolved) {
  const Config config = parse("");
  EXPECT_EQ(config.model.kv_heads, 4);
  EXPECT_EQ(config.model.head_dim, 32);
  EXPECT_EQ(config.model.mlp_width, 352);  // 8/3 of 128 is 341.3
  EXPECT_GE(config.model.rope_base, 10'000);
  EXPECT_EQ(config.train.final_learning_rate, 1e-4);
  EXPECT_EQ(config.train.warmup_steps, 20);
  EXPECT_EQ(config.run.ring_size(), 1);
  EXPECT_EQ(parse("[run]\nranks = 6").run.ring_size(), 6);
}

TEST(Config, DerivedValuesFollowTheOnesGiven) {
  const Config config =
      parse("[model]\nwidth = 96\nheads = 6\n[train]\nlearning_rate = 2\nsteps = 7");
  EXPECT_EQ(config.model.kv_heads, 6);
  EXPECT_EQ(config.model.head_dim, 16);
  EXPECT_EQ(config.model.mlp_width, 256);
  EXPECT_EQ(config.train.final_learning_rate, 0.2);
  EXPECT_EQ(config.train.warmup_steps, 3);
  EXPECT_EQ(config.train.decay_steps, 1);
  const std::string sliding = "[run]\nseq_len = 100000\n[data]\nwindow = 512";
  EXPECT_EQ(parse(sliding).model.rope_base, parse("[run]\nseq_len = 512").model.rope_base);
}

TEST(Config, ReferenceListsExactlyTheKnownKeysInOrder) {
  std::vector<std::string> listed;
  std::string group, line;
  std::ifstream stream(config_file("reference.toml"));
  bool documented = false;
  while (std::getline(stream, line)) {
    if (line.starts_with("[")) group = line.substr(1, line.find(']') - 1);
    const size_t equals = line.find(" = ");
    if (!line.starts_with("#") && equals != std::string::npos) {
      listed.push_back(group + "." + line.substr(0, equals));
      EXPECT_TRUE(documented) << listed.back() << " has no comment above it";
    }
    documented = line.starts_with("#");
  }
  EXPECT_EQ(listed, names_of_keys());
}

TEST(Config, ReferenceValuesAreTheDefaults) {
  Config defaults = parse("");
  defaults.run.name = "reference";
  EXPECT_EQ(to_toml(load_config(config_file("reference.toml"))), to_toml(defaults));
}

TEST(Config, EveryConfigOfTheProjectIsValid) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(config_file(""))) {
    ++found;
    EXPECT_NO_THROW(load_config(entry.path())) << entry.path();
  }
  EXPECT_GE(found, 4);
}

TEST(Config, ResolvedTextReadsBackToTheSame) {
  Config config = parse(
      "[model]\nheads = 8\nkv_heads = 2\nqk_norm = true\nrope_base = 123456.789\n"
      "[data]\ncorpus = 'a \"b\" \\ c.h5'\norder = 'sequential'\nmask = 'causal'\n"
      "[run]\nlayout = 'striped'\nranks = 4\nring = 2\nname = 'a b'\n"
      "[train]\nlearning_rate = 0.1\nbeta1 = 0.30000000000000004\nschedule = 'wsd'\n"
      "[memory]\nrecompute = 'full'\n");
  config.data.validation = "line\nbreak\ttab\x01";
  const std::string text = to_toml(config);
  const Config again = parse(text);
  EXPECT_EQ(to_toml(again), text);
  EXPECT_EQ(again.data.corpus, "a \"b\" \\ c.h5");
  EXPECT_EQ(again.data.validation, config.data.validation);
  EXPECT_EQ(again.data.order, OrderMode::sequential);
  EXPECT_EQ(again.data.mask, MaskRule::causal);
  EXPECT_EQ(again.run.layout, Layout::striped);
  EXPECT_EQ(again.memory.recompute, Recompute::full);
  EXPECT_EQ(again.train.schedule, ScheduleShape::wsd);
  EXPECT_EQ(again.train.beta1, 0.30000000000000004);
  EXPECT_EQ(again.model.rope_base, 123456.789);
}

TEST(Config, WordsAreThoseOfTheEnumerations) {
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    EXPECT_EQ(parse("", {std::string("run.layout=") + name_of(layout)}).run.layout, layout);
  }
  for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
    const std::string setting = std::string("memory.recompute=") + name_of(policy);
    EXPECT_EQ(parse("", {setting}).memory.recompute, policy);
  }
}

TEST(Config, UnknownKeyIsNamedWithItsLineAndTheNearestKey) {
  EXPECT_EQ(error_of("\n[model]\nwitdh = 64"),
            "x.toml:3: unknown key 'model.witdh' | did you mean 'model.width'?");
  EXPECT_EQ(error_of("[modle]\nwidth = 64"),
            "x.toml:2: unknown key 'modle.width' | did you mean 'model.width'?");
  EXPECT_EQ(error_of("seed = 1"), "x.toml:1: unknown key 'seed' | did you mean 'run.seed'?");
  EXPECT_EQ(error_of("[train]\nseq_len = 1"),
            "x.toml:2: unknown key 'train.seq_len' | did you mean 'run.seq_len'?");
  EXPECT_EQ(error_of("[model]\nelephant = 1"),
            "x.toml:2: unknown key 'model.elephant' | configs/reference.toml lists every key");
  EXPECT_THAT(error_of("[elephants]"), HasSubstr("x.toml:1: unknown key 'elephants'"));
  EXPECT_THAT(error_of("[model]\nwidth.x = 1"),
              HasSubstr("model.width must be an integer, not a table"));
  EXPECT_THAT(error_of("[[model]]\nwidth = 1"), HasSubstr("unknown key 'model'"));
}

TEST(Config, EveryKeyRefusesAnotherType) {
  for (const std::string& name : names_of_keys()) {
    const size_t dot = name.find('.');
    const std::string line = "[" + name.substr(0, dot) + "]\n" + name.substr(dot + 1) + " = ";
    for (const char* value : {"[1]", "1979-05-27", "{a = 1}"}) {
      EXPECT_THAT(error_of(line + value), HasSubstr("x.toml:2: ")) << name << " = " << value;
    }
  }
  EXPECT_THAT(error_of("[model]\nwidth = 64.0"), HasSubstr("must be an integer, not a number"));
  EXPECT_THAT(error_of("[model]\nwidth = '64'"), HasSubstr("must be an integer, not a text"));
  EXPECT_THAT(error_of("[model]\nqk_norm = 1"), HasSubstr("must be true or false"));
  EXPECT_THAT(error_of("[model]\nrope_base = 'car'"), HasSubstr("a number or \"auto\""));
  EXPECT_THAT(error_of("[run]\nname = 3"), HasSubstr("must be a text"));
  EXPECT_THAT(error_of("[run]\nseed = '9223372036854775808'"),
              HasSubstr("choose a value from 0 to 9223372036854775807"));
  EXPECT_EQ(parse("[train]\nclip_norm = 2").train.clip_norm, 2.0);  // an integer is a number
}

TEST(Config, ValuesThatCannotBeAreRefused) {
  const std::pair<const char*, const char*> cases[] = {
      {"[run]\nranks = 0", "x.toml:2: run.ranks = 0 cannot be | choose a value from 1 to 1024"},
      {"[run]\nranks = -4", "run.ranks = -4 cannot be"},
      {"[run]\nranks = 6\nring = 4", "run.ring = 4 does not divide run.ranks = 6"},
      {"[run]\nseq_len = 0", "run.seq_len = 0 cannot be"},
      {"[run]\nlayout = 'spiral'", "choose one of: contiguous, zigzag, striped"},
      {"[run]\ndevice = 'tpu'", "choose one of: cpu"},
      {"[run]\nname = '../x'", "cannot name a folder"},
      {"[model]\nkv_heads = 3", "model.kv_heads = 3 does not divide model.heads = 4"},
      {"[model]\nkv_heads = 0", "model.kv_heads = 0 cannot be"},
      {"[model]\nwidth = 100\nheads = 3", "model.heads = 3 does not divide model.width = 100"},
      {"[model]\nhead_dim = 12", "model.head_dim = 12 is not a multiple of 8"},
      {"[model]\nwidth = 36", "model.head_dim = 9 is not a multiple of 8"},
      {"[model]\nwidth = 1040\nheads = 1", "model.head_dim = 1040 cannot be"},
      {"[data]\nwindow = 1", "data.window = 1 lets a token see nothing but itself"},
      {"[run]\nname = \"\"", "run.name = \"\" cannot name a folder"},
      {"[model]\nrope_base = -1", "model.rope_base = -1 cannot be"},
      {"[train]\nlearning_rate = 0", "train.learning_rate = 0 cannot be"},
      {"[train]\nlearning_rate = nan", "train.learning_rate = nan cannot be"},
      {"[train]\nlearning_rate = inf", "train.learning_rate = inf cannot be"},
      {"[train]\nfinal_learning_rate = 1", "is more than train.learning_rate"},
      {"[train]\nbeta2 = 1", "train.beta2 = 1 cannot be"},
      {"[train]\nsteps = 10\nwarmup_steps = 11",
       "train.warmup_steps = 11 is more than train.steps = 10"},
      {"[train]\nschedule = 'wsd'\ndecay_steps = 990", "do not fit into train.steps = 1000"},
      {"[train]\neval_every = 5", "train.eval_every = 5 needs a validation corpus"},
      {"[memory]\nrecompute = 'all'", "choose one of: none, selective, full"},
      {"[memory]\nhead_chunk = 0", "choose a value of at least 1"},
      {"[memory]\noffload = 'host'",
       "memory.offload = \"host\" is for run.device = \"cuda\" | name a folder on a fast disk"},
      {"[run]\ndevice = 'cuda'\n[memory]\noffload = '/tmp'",
       "memory.offload = \"/tmp\" cannot be with run.device = \"cuda\" | choose \"host\""},
  };
  for (const auto& [text, expected] : cases) {
    EXPECT_THAT(error_of(text), HasSubstr(expected)) << text;
  }
}

TEST(Config, OffloadGoesWhereTheDeviceCanReach) {
  EXPECT_EQ(parse("[memory]\noffload = './host'").memory.offload, "./host");
  EXPECT_EQ(parse("[memory]\noffload = 'host'", {"run.device=cuda"}).memory.offload, "host");
  EXPECT_EQ(parse("[run]\ndevice = 'cuda'").memory.offload, "");
}

TEST(Config, TextThatIsNotTomlIsRefusedWithItsLine) {
  EXPECT_THAT(error_of("[model]\nwidth = = 3"), HasSubstr("x.toml:2: "));
  EXPECT_THAT(error_of("[model]\nwidth = 1\nwidth = 2"), HasSubstr("x.toml:3: "));
  EXPECT_THAT(error_of("\xff\xfe"), HasSubstr("x.toml:1: "));
  EXPECT_THAT(error_of("[model"), HasSubstr("x.toml:1: "));
}

TEST(Config, OverridesAreTypedByTheKeyAndWin) {
  const Config config =
      parse("[model]\nwidth = 64\n",
            {"model.width=256", "model.qk_norm=true", "data.corpus=42",
             "data.validation=\"quoted.h5\"", "run.layout=striped", "train.learning_rate=1e-2",
             "model.rope_base=auto", "run.name=1.5", "run.folder=a=b"});
  EXPECT_EQ(config.model.width, 256);
  EXPECT_TRUE(config.model.qk_norm);
  EXPECT_EQ(config.data.corpus, "42");
  EXPECT_EQ(config.data.validation, "quoted.h5");
  EXPECT_EQ(config.run.layout, Layout::striped);
  EXPECT_EQ(config.train.learning_rate, 0.01);
  EXPECT_EQ(config.run.name, "1.5");
  EXPECT_EQ(config.run.folder, "a=b");
}

TEST(Config, WrongOverridesAreRefused) {
  EXPECT_EQ(error_of("", {"model.witdh=3"}),
            "--set model.witdh=3: unknown key 'model.witdh' | did you mean 'model.width'?");
  EXPECT_THAT(error_of("", {"model.width"}), HasSubstr("there is no '='"));
  EXPECT_THAT(error_of("", {"model.width=wide"}), HasSubstr("must be an integer"));
  EXPECT_THAT(error_of("", {"model.width="}), HasSubstr("must be an integer"));
  EXPECT_THAT(error_of("", {"model.width=3\nheads=4"}), HasSubstr("must be an integer"));
  EXPECT_THAT(error_of("", {"model.width=0"}), HasSubstr("model.width = 0 cannot be"));
  EXPECT_THAT(error_of("", {"model.qk_norm=1"}), HasSubstr("must be true or false"));
}

TEST(Config, FileNamesTheRunAndMissingFilesAreUsageErrors) {
  const auto folder = std::filesystem::path(testing::TempDir());
  const auto file = folder / ("ringlet-config-" + std::to_string(getpid()) + ".toml");
  std::ofstream(file) << "[model]\nwidth = 64\n";
  const std::vector<std::string> overrides{"model.width=32"};
  const Config config = load_config(file, overrides);
  std::filesystem::remove(file);
  EXPECT_EQ(config.run.name, file.stem());
  EXPECT_EQ(config.model.width, 32);
  EXPECT_THROW(load_config(file), UsageError);
  EXPECT_THROW(load_config(folder), UsageError);
}

TEST(Config, FillsTheModelAndTheSchedule) {
  const Config config = parse(
      "[model]\nheads = 8\nkv_heads = 2\ntied_head = false\n"
      "[train]\nschedule = 'wsd'\n[memory]\nmlp_chunk = 7");
  const GptConfig gpt = config.gpt(257);
  EXPECT_EQ(gpt.vocabulary, 257);
  EXPECT_EQ(gpt.heads.heads, 8);
  EXPECT_EQ(gpt.heads.kv_heads, 2);
  EXPECT_EQ(gpt.heads.head_dim, 16);
  EXPECT_FALSE(gpt.tied_head);
  EXPECT_EQ(gpt.rope_base, config.model.rope_base);
  EXPECT_EQ(config.schedule().shape, ScheduleShape::wsd);
  EXPECT_EQ(config.schedule().decay_steps, 200);
  EXPECT_EQ(config.step_settings().mlp_chunk, 7);
}

}  // namespace
}  // namespace ringlet
