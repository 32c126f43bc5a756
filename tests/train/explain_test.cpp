// What `ringlet explain` draws: known rings, the sends of the trainer's own step, the program as a user meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/check.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/commands/explain.h"
#include "train/explain/ring_svg.h"
#include "train/explain/ring_text.h"
#include "train/plan/dry_run.h"
#include "train/units.h"

namespace ringlet::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::array kLayouts{Layout::contiguous, Layout::zigzag, Layout::striped};

// With c = T / R: the last rank has (R - 1) c^2 and its own c (c + 1) / 2; the mean is (T + 1) / 2 for each of c rows.
TEST(RingPicture, ContiguousGivesTheLastRankAlmostTwiceTheMean) {
  const RingPicture ring(Layout::contiguous, 4096, 4, {});
  EXPECT_EQ(ring.busiest_rank(), 3);
  EXPECT_NEAR(ring.balance(), 1.75, 1e-3);
  EXPECT_NEAR(ring.critical_path(), 1.75, 1e-3);
  const RingWork own = ring.work(2, 0), earlier = ring.work(2, 1), later = ring.work(2, 3);
  EXPECT_EQ(own.pairs, 1024 * 1025 / 2);
  EXPECT_EQ(earlier.pairs, 1024 * 1024);
  EXPECT_EQ(later.skipped_pairs, 1024 * 1024);  // the block of rank 3
  EXPECT_EQ(ring.in_all().kv_tokens, 1024 * (3 + 2 + 1 + 0));
  EXPECT_EQ(ring.in_all().gradient_tokens, 1024 * (4 + 3 + 2 + 0));  // as far, and home
}

TEST(RingPicture, ZigzagGivesAllTheSameAtEveryHop) {
  const RingPicture ring(Layout::zigzag, 4096, 4, {});
  EXPECT_EQ(ring.balance(), 1);
  EXPECT_EQ(ring.critical_path(), 1);
  for (int hop = 1; hop < 4; ++hop) EXPECT_EQ(ring.of_hops()[size_t(hop)].pairs, 4 * 2 * 512 * 512) << hop;
}

TEST(RingPicture, StripedIsAlmostEven) {
  const RingPicture ring(Layout::striped, 4096, 4, {});
  EXPECT_GT(ring.balance(), 1);
  EXPECT_LT(ring.critical_path(), 1.002);
  EXPECT_EQ(ring.work(0, 1).pairs, 1024 * 1023 / 2);  // keys of rank 3 lie behind the queries' own
  EXPECT_EQ(ring.in_all().skipped_pairs, 0);
}

TEST(RingPicture, PairsOfAllRanksAndHopsAreThoseOfTheMask) {
  const std::vector<Mask> masks{{{0}, 0}, {{0, 100, 101, 240}, 0}, {{0}, 37}, {{0, 130}, 50}};
  for (const Mask& mask : masks) {
    for (const int64_t length : {int64_t{1}, int64_t{7}, int64_t{333}}) {
      Mask inside = mask;
      std::erase_if(inside.document_starts, [&](int64_t start) { return start >= length; });
      int64_t pairs = 0;
      for (int64_t i = 0; i < length; ++i) pairs += i - inside.first_visible(i) + 1;
      for (const Layout layout : kLayouts) {
        for (const int size : {1, 2, 3, 5}) {
          const RingPicture ring(layout, length, size, inside);
          EXPECT_EQ(ring.in_all().pairs, pairs) << name_of(layout) << length << '/' << size;
          EXPECT_EQ(ring.in_all().block_pairs, length * length);
          EXPECT_GE(ring.critical_path(), ring.balance() - 1e-12);
        }
      }
    }
  }
  const int64_t longest = int64_t{1} << 31;  // what a config allows
  for (const Layout layout : kLayouts) {
    EXPECT_EQ(RingPicture(layout, longest, 4, {}).in_all().pairs, longest * (longest + 1) / 2);
  }
}

TEST(RingPicture, CountsThePositionsOfARank) {
  for (const Layout layout : kLayouts) {
    const RingPicture ring(layout, 200, 3, {});
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 200}, {0, 1}, {13, 140}, {199, 200}}) {
      std::array<int64_t, 3> count{};
      for (int64_t i = begin; i < end; ++i) ++count[size_t(ring.layout.rank_of(i))];
      for (int rank = 0; rank < 3; ++rank) EXPECT_EQ(ring.held(rank, begin, end), count[size_t(rank)]) << begin;
    }
  }
  EXPECT_THAT(first_and_last(4, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(first_and_last(9, 3), ElementsAre(0, 1, 8));
}

// The trainer's own step, run dry on every rank: keys and values go round forward and backward, gradients once.
TEST(RingPicture, SendsWhatTheTrainerSends) {
  const std::vector<Mask> masks{{{0}, 0}, {{0, 100, 101, 300, 340}, 0}, {{0}, 90}};
  int64_t kept_back = 0;
  for (const Layout layout : kLayouts) {
    for (const int64_t size : {2, 3, 5}) {
      for (const Mask& mask : masks) {
        const int pieces = size == 5 ? 0 : 7;
        const std::vector<std::string> overrides{
            "run.seq_len=700", "run.ranks=" + std::to_string(size), std::string("run.layout=") + name_of(layout),
            "run.pieces=" + std::to_string(pieces), "model.layers=3", "model.kv_heads=2"};
        const Config config = parse_config("", "a test", overrides);
        const DryRun run{config, config.gpt(257), mask};
        const HeadShape& heads = run.gpt.heads;
        const RingPicture ring(layout, 700, int(size), mask, pieces);
        for (int rank = 0; rank < size; ++rank) {
          const Traffic sent = DryRank(run, config.run.sequence_layout(), rank).step().traffic;
          const RingWork& work = ring.of_ranks()[size_t(rank)];
          EXPECT_EQ(3 * (2 * work.kv_tokens + work.gradient_tokens) * 2 * heads.kv_heads * heads.head_dim * 4,
                    sent.exchange_bytes)
              << name_of(layout) << ' ' << rank << '/' << size;
          kept_back += 700 * (size - 1) / size - work.kv_tokens;
        }
      }
    }
  }
  EXPECT_GT(kept_back, 5000);
}

size_t columns_of(const std::string& line) {
  return size_t(std::ranges::count_if(line, [](char byte) { return (byte & 0xC0) != 0x80; }));
}

TEST(RingText, IsReadableForRingsOfAnySize) {
  for (const int size : {1, 2, 8, 9, 16, 37, 200, 1024}) {
    for (const int64_t length : {int64_t{1}, int64_t{61}, int64_t{1} << 24, int64_t{1} << 31}) {
      if (size == 1024 && length != int64_t{1} << 31) continue;
      std::vector<RingPicture> rings;
      for (const Layout layout : kLayouts) {
        if (size < 1024 || layout == Layout::zigzag) rings.emplace_back(layout, length, size, Mask{});
      }
      std::istringstream text(to_text(rings, 1024));
      int lines = 0;
      for (std::string line; std::getline(text, line); ++lines) {
        EXPECT_LE(columns_of(line), 100u) << line;
        EXPECT_THAT(line, testing::Not(HasSubstr("nan"))) << line;
      }
      EXPECT_LT(lines, 200) << size;
    }
  }
}

TEST(RingText, DrawsWhoHoldsAndSeesWhat) {
  const std::vector<RingPicture> zigzag{RingPicture(Layout::zigzag, 4096, 4, Mask{{0, 2048}, 0})};
  const std::string text = to_text(zigzag, 0);
  EXPECT_THAT(text, HasSubstr("  0000000011111111222222223333333333333333222222221111111100000000  64 to a letter"));
  EXPECT_THAT(text, HasSubstr("  |                               |    "));
  EXPECT_THAT(text, HasSubstr("1: 512-1023, 3072-3583"));
  const std::vector<RingPicture> striped{RingPicture(Layout::striped, 4096, 4, Mask{})};
  EXPECT_THAT(to_text(striped, 0), HasSubstr("the first  01230123"));
  const std::vector<RingPicture> contiguous{RingPicture(Layout::contiguous, 65, 4, Mask{})};
  const std::vector<RingPicture> cut{RingPicture(Layout::striped, 4096, 4, Mask{}, 7)};
  EXPECT_THAT(to_text(cut, 0), HasSubstr("1, 5, .. 4093"));  // whole, however many pieces
  const std::string short_text = to_text(contiguous, 0);
  EXPECT_THAT(short_text, HasSubstr("2: nothing"));
  EXPECT_THAT(short_text, HasSubstr("2 of 4 ranks hold nothing"));
  const std::vector<RingPicture> even{RingPicture(Layout::contiguous, 4096, 4, Mask{})};
  // What rank 2 has in hand: its own block, those of rank 1 and 0, and one that it does not see.
  EXPECT_THAT(to_text(even, 0), HasSubstr("rank 2    2▒  50%→  1█ 100%→  0█ 100%→  3·"));
}

TEST(RingSvg, IsWhole) {
  for (const int size : {1, 4, 20, 100}) {
    for (const int64_t length : {int64_t{1}, int64_t{61}, int64_t{100'000}}) {
      std::vector<RingPicture> rings;
      for (const Layout layout : kLayouts) rings.emplace_back(layout, length, size, Mask{{0}, 50});
      const std::string svg = to_svg(rings, "title");
      EXPECT_TRUE(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
      EXPECT_EQ(svg.find("nan"), std::string::npos);
      EXPECT_EQ(svg.find("inf"), std::string::npos);
      EXPECT_LT(svg.size(), 3'000'000u);
      for (const Layout layout : kLayouts) EXPECT_THAT(svg, HasSubstr(std::string(">") + name_of(layout) + "<"));
    }
  }
}

TEST(Documents, FillTheWindowFromItsStart) {
  EXPECT_THAT(document_starts("3000,500,96", 4096), ElementsAre(0, 3000, 3500, 3596));
  EXPECT_THAT(document_starts("2k,2048", 4096), ElementsAre(0, 2048));
  EXPECT_THAT(document_starts("4k", 4096), ElementsAre(0));
  EXPECT_THROW(document_starts("4k,1", 4096), UsageError);
  for (const char* wrong : {"", ",", "0", "-1", "1,,2", "3x", "1.5k", "9999999999999999"}) {
    EXPECT_THROW(document_starts(wrong, 4096), UsageError) << wrong;
  }
}

struct ExplainProgram {
  TemporaryFolder folder;
  ProgramResult operator()(const std::string& words) const {
    std::vector<std::string> arguments{"explain"};
    std::istringstream stream(words);
    for (std::string word; stream >> word;) arguments.push_back(word);
    return run_program(RINGLET_PROGRAM, arguments, folder.path());
  }
};

TEST(ExplainCommand, TakesAConfigAndOptionsOverIt) {
  const ExplainProgram explain;
  const std::string tiny = RINGLET_SOURCE_DIR "/configs/tiny.toml";
  const auto of_config = nlohmann::json::parse(explain(tiny + " --json").output);
  EXPECT_EQ(of_config["seq_len"], 512);
  EXPECT_EQ(of_config["ring"], 2);
  ASSERT_EQ(of_config["layouts"].size(), 1u);
  EXPECT_EQ(of_config["layouts"][0]["layout"], "zigzag");
  EXPECT_GT(of_config["token_bytes"], 0);

  const auto other = nlohmann::json::parse(
      explain(tiny + " --ranks 8 --ring 4 --seq-len 4k --layout all --window 1k --documents 3000,500 --json").output);
  EXPECT_EQ(other["ring"], 4);
  EXPECT_EQ(other["window"], 1024);
  EXPECT_THAT(other["document_starts"], ElementsAre(0, 3000, 3500));
  for (const auto& layout : other["layouts"]) {
    int64_t pairs = 0;
    for (const auto& rank : layout["ranks"]) {
      for (const auto& hop : rank["hops"]) pairs += hop["pairs"].get<int64_t>();
    }
    EXPECT_EQ(pairs, layout["work"]["pairs"]);
  }
}

TEST(ExplainCommand, DrawsIntoAFile) {
  const ExplainProgram explain;
  const std::string path = (explain.folder.path() / "ring.svg").string();
  const ProgramResult done = explain("--ranks 4 --seq-len 4k --svg " + path);
  EXPECT_EQ(done.exit_code, 0) << done.errors;
  EXPECT_THAT(done.output, HasSubstr("side by side"));
  EXPECT_THAT(file_text(path), HasSubstr("a ring of 4, T = 4096"));
  EXPECT_EQ(explain("--ranks 4 --svg " + path + "/no/ring.svg").exit_code, 1);
}

TEST(ExplainCommand, BadInputIsOneLineAndAdvice) {
  const ExplainProgram explain;
  const auto expect = [&](const std::string& arguments, const std::string& cause, const std::string& advice) {
    const ProgramResult result = explain(arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_THAT(result.errors, HasSubstr(cause)) << arguments;
    EXPECT_THAT(result.errors, HasSubstr(advice)) << arguments;
    EXPECT_EQ(std::ranges::count(result.errors, '\n'), 2) << result.errors;
  };
  expect("", "neither a config nor a number of ranks", "--ranks 4");
  expect("--seq-len 4096", "neither a config nor a number of ranks", "--ranks 4");
  expect("--ranks 0", "run.ranks", "1 to 1024");
  expect("--ranks 3 --ring 2", "run.ring = 2 does not divide", "choose a ring");
  expect("--ranks 4 --seq-len many", "\"many\" is not a number of tokens", "4k");
  expect("--ranks 4 --seq-len 0", "run.seq_len = 0", "choose a value from 1");
  expect("--ranks 4 --layout spiral", "--layout", "--help");
  expect("--ranks 4 --documents 3000,5000", "have 8000 tokens, the window has 4096", "--seq-len");
  expect("--ranks 4 --documents 3000,x", "\"x\" is not a number of tokens", "as in");
  expect("--ranks 4 --set run.seq_length=5", "unknown key", "run.seq_len");
  std::string ones = "1";
  for (int i = 0; i < 100; ++i) ones += ",1";
  expect("--ranks 1024 --documents " + ones, "102 documents on a ring of 1024", "fewer --documents");
}

}  // namespace
}  // namespace ringlet::test
