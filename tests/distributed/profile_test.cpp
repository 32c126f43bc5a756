// Traces of measured steps: what a viewer needs of them, and that tables and files say what was sent and when.
#include "train/profile/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "kernels/check.h"
#include "tests/support/program.h"
#include "tests/support/training_case.h"
#include "train/commands/profile.h"
#include "train/profile/overlap.h"
#include "train/profile/trace_file.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;

using Json = nlohmann::json;
constexpr SharedPlaces kRoomy{2, 2, "thread", "core"}, kCrowded{4, 2, "thread", "core"};

/// Some measured steps, as objects and as the files that were written.
struct Measured {
  Config config;
  Profile profile;
  std::vector<Json> files;  // by rank
  Json all_ranks;
};

struct ProfileTest : testing::Test {
  TemporaryFolder folder;
  const std::string corpus = make_corpus(folder, 6);

  Config config(int64_t ranks, int64_t ring, Layout layout = Layout::zigzag) const {
    Config config = tiny_training(corpus, ranks, ring);
    config.data.mask = MaskRule::causal;
    config.run.layout = layout;
    config.run.threads_per_rank = 1;
    config.train.batch_windows = 3;  // uneven shares of two rings
    return config;
  }

  Measured measure(const Config& config) {
    const Corpus tokens = Corpus::open(corpus);
    const WindowReader windows(tokens, config.run.seq_len);
    Measured measured{config, record_profile(config, config.gpt(tokens.vocabulary()), windows, {2, 1}), {}, {}};
    const std::filesystem::path traces = folder.path() / ("traces" + std::to_string(++count_));
    write_traces(measured.profile.recording, name_of(config.run.layout), traces);
    for (int64_t rank = 0; rank < config.run.ranks; ++rank) {
      measured.files.push_back(Json::parse(file_text(traces / ("rank_" + std::to_string(rank) + ".json"))));
    }
    measured.all_ranks = Json::parse(file_text(traces / "perfetto" / "all_ranks.json"));
    return measured;
  }

 private:
  int count_ = 0;
};

bool is(const Json& event, const char* kind) { return event["ph"] == kind; }
bool is_message(const Json& event) {
  return is(event, "X") && event["name"].get<std::string>().starts_with("ncclDevKernel_");
}
bool is_compute(const Json& event) {
  if (!is(event, "X") || !event.contains("args") || !event["args"].contains("stream")) return false;
  return !is_message(event) && !event["name"].get<std::string>().starts_with("Memcpy");
}
int64_t begin_of(const Json& event) { return event["ts"]; }
int64_t end_of(const Json& event) { return event["ts"].get<int64_t>() + event["dur"].get<int64_t>(); }

/// Spans of a thread must lie within each other or apart.
void expect_nested(const Json& events) {
  std::map<std::pair<int, int>, std::vector<std::pair<int64_t, int64_t>>> threads;  // begin, -end: outer ones first
  for (const Json& event : events) {
    if (!is(event, "X")) continue;
    ASSERT_GE(event["dur"].get<int64_t>(), 0) << event;
    threads[{event["pid"], event["tid"]}].push_back({begin_of(event), -end_of(event)});
  }
  EXPECT_FALSE(threads.empty());
  for (auto& [thread, spans] : threads) {
    std::ranges::sort(spans);
    std::vector<int64_t> open;  // ends
    for (const auto& [begin, minus_end] : spans) {
      while (!open.empty() && open.back() <= begin) open.pop_back();
      ASSERT_TRUE(open.empty() || -minus_end <= open.back()) << "thread " << thread.second << " at " << begin;
      open.push_back(-minus_end);
    }
  }
}

TEST_F(ProfileTest, TracesAreWhatViewersRead) {
  for (const auto& [ranks, ring] : {std::pair{1, 1}, {3, 3}, {4, 2}}) {
    for (const Layout layout : {Layout::contiguous, Layout::zigzag}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, rings of " << ring << ' ' << name_of(layout));
      Config long_enough = config(ranks, ring, layout);
      long_enough.run.seq_len = 288;  // every rank of the contiguous layout holds some tiles of 64
      const Measured measured = measure(long_enough);
      std::map<int64_t, std::pair<int, int>> arrows;  // starts and ends
      for (int rank = 0; rank < ranks; ++rank) {
        const Json& file = measured.files[rank];
        EXPECT_EQ(file["distributedInfo"]["rank"], rank);
        expect_nested(file["traceEvents"]);
        std::map<std::string, int> names;
        for (const Json& event : file["traceEvents"]) {
          EXPECT_EQ(event["pid"], rank);
          if (is(event, "s")) ++arrows[event["id"]].first;
          if (is(event, "f")) ++arrows[event["id"]].second;
          ++names[event["name"]];
        }
        for (const char* name : {"ProfilerStep#2", "ProfilerStep#3", "process_name"}) EXPECT_EQ(names[name], 1) << name;
        for (const char* name : {"data", "forward", "backward", "optimizer", "layer 0", "layer 1", "hop 0", "arena",
                                 "attention_backward", "adamw"}) {
          EXPECT_GT(names[name], 1) << name;
        }
        EXPECT_EQ(names["hop " + std::to_string(ring)], 0);
        EXPECT_EQ(names["ProfilerStep#1"], 0);  // the warm-up
        EXPECT_EQ(names["ProfilerStep#4"], 1);  // the end
      }
      for (const auto& [id, ends] : arrows) EXPECT_EQ(ends, std::pair(1, 1)) << "arrow " << id;
      EXPECT_EQ(arrows.empty(), ring == 1);
      expect_nested(measured.all_ranks["traceEvents"]);
    }
  }
}

// Holistic Trace Analysis looks for this text, line by line.
TEST_F(ProfileTest, TheRankStandsInTheFirstLine) {
  const Config two = config(2, 2);
  measure(two);
  for (const int rank : {0, 1}) {
    const std::string text = file_text(folder.path() / "traces1" / ("rank_" + std::to_string(rank) + ".json"));
    EXPECT_THAT(text.substr(0, text.find('\n')), testing::HasSubstr("\"rank\": " + std::to_string(rank) + ","));
  }
}

/// Spans of messages that leave, by rank, cargo and hop, as the schedule says.
std::map<std::string, int64_t> scheduled(const Config& config, int rank) {
  const int ring_size = int(config.run.ring_size()), position = rank % ring_size;
  const SequenceLayout layout = make_layout(config.run.layout, config.run.seq_len, ring_size);
  const RingSchedule schedule(layout, Mask{{0}, config.data.window});
  const int64_t windows = WindowShare{config.train.batch_windows, config.run.ranks / ring_size, rank / ring_size}.per_step();
  const int64_t times = 2 * config.model.layers * windows;  // of two steps
  std::map<std::string, int64_t> counts;
  for (int hop = 0; hop < ring_size; ++hop) {
    const int owner = (position - hop + ring_size) % ring_size;
    bool keys = false, gradient = false;
    int64_t sums = 0;  // of a reproducible layout, whose pieces travel one by one
    for (int piece = 0; piece < int(layout.ranks[owner].size()); ++piece) {
      const bool moves_on = hop + 1 < ring_size && schedule.kv_travels(owner, piece, hop);
      keys = keys || moves_on;
      gradient = gradient || (hop > 0 && schedule.gradient_travels(owner, piece, hop));
      sums += moves_on || schedule.sum_goes_home(owner, piece, hop) ? 1 : 0;
    }
    if (keys) counts["ncclDevKernel_SendRecv (KV) hop " + std::to_string(hop)] = 2 * times;  // forward and backward
    if (!layout.reproducible()) sums = gradient ? 1 : 0;
    if (sums > 0) counts["ncclDevKernel_SendRecv (dKV) hop " + std::to_string(hop)] = sums * times;
  }
  return counts;
}

TEST_F(ProfileTest, SpansOfMessagesAreThoseOfTheScheduleAndTheirBytesThoseOfTheMetrics) {
  for (const auto& [ranks, ring] : {std::pair{3, 3}, {4, 4}, {4, 2}}) {
    // In contiguous layout some hops neither send nor receive, with a window most.
    for (const auto& [layout, window] : {std::pair{Layout::zigzag, 0}, {Layout::striped, 0}, {Layout::contiguous, 0},
                                         {Layout::contiguous, 20}}) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, rings of " << ring << ' ' << name_of(layout) << ' ' << window);
      Config each = config(ranks, ring, layout);
      each.data.window = window;
      const Measured measured = measure(each);
      for (int rank = 0; rank < ranks; ++rank) {
        std::map<std::string, int64_t> counts;
        int64_t bytes = 0;
        for (const Json& event : measured.files[rank]["traceEvents"]) {
          if (!is_message(event)) continue;
          const int thread = event["tid"].get<int>() % 10;
          if (thread != 3) bytes += event["args"]["bytes"].get<int64_t>();
          if (thread != 2) continue;
          ++counts[event["name"].get<std::string>() + " hop " + std::to_string(event["args"]["hop"].get<int>())];
        }
        EXPECT_EQ(counts, scheduled(measured.config, rank)) << "rank " << rank;
        int64_t sent = 0;
        for (const MetricsRecord& record : measured.profile.records) sent += record.sent_bytes[rank];
        EXPECT_EQ(bytes, sent) << "rank " << rank;
      }
    }
  }
}

/// Which microseconds of a rank's trace it computed, or messages travelled: apart from the intervals of overlap.cpp.
struct Ticks {
  std::vector<bool> compute, messages;
  explicit Ticks(const Json& events) {
    for (const Json& event : events) {
      if (is_compute(event)) mark(compute, event);
      if (is_message(event)) mark(messages, event);
    }
    compute.resize(std::max(compute.size(), messages.size()));
    messages.resize(compute.size());
  }
  static void mark(std::vector<bool>& ticks, const Json& event) {
    if (int64_t(ticks.size()) < end_of(event)) ticks.resize(size_t(end_of(event)));
    for (int64_t at = begin_of(event); at < end_of(event); ++at) ticks[size_t(at)] = true;
  }
};

TEST_F(ProfileTest, TablesSayWhatTheFilesSay) {
  Config linked = config(3, 3);
  linked.run.link = "20MB/s,100us";
  for (const Config& each : {config(4, 2), linked}) {
    const Measured measured = measure(each);
    const Overlap overlap = overlap_of(measured.profile.recording, Mask{});
    ASSERT_EQ(overlap.ranks.size(), size_t(each.run.ranks));
    double exposed_ms = 0, hops_exposed_ms = 0;
    for (size_t rank = 0; rank < overlap.ranks.size(); ++rank) {
      const Ticks ticks(measured.files[rank]["traceEvents"]);
      double compute = 0, travels = 0, both = 0;
      for (size_t i = 0; i < ticks.compute.size(); ++i) {
        compute += ticks.compute[i] ? 1 : 0;
        travels += ticks.messages[i] ? 1 : 0;
        both += ticks.compute[i] && ticks.messages[i] ? 1 : 0;
      }
      const RankOverlap& row = overlap.ranks[rank];
      EXPECT_NEAR(row.compute_ms, compute / 2000, 0.01 * compute / 2000);  // of a step, of two
      EXPECT_NEAR(row.transfer_ms, travels / 2000, 0.01 * travels / 2000);
      ASSERT_GT(travels, 0);
      EXPECT_NEAR(*row.hidden_percent(), 100 * both / travels, 1);
      EXPECT_LE(row.compute_ms + row.exposed_ms + row.loader_ms, row.step_ms);
      EXPECT_LE(row.late_ms, row.exposed_ms);
      exposed_ms += row.exposed_ms / double(overlap.ranks.size());
    }
    for (const HopOverlap& hop : overlap.hops) {
      EXPECT_LE(hop.hidden_ms, hop.transfer_ms + 1e-9);
      hops_exposed_ms += hop.exposed_ms;
    }
    EXPECT_NEAR(hops_exposed_ms + overlap.collective_exposed_ms, exposed_ms, 0.01 * exposed_ms + 1e-6);
    EXPECT_EQ(overlap.hops.size(), 2u * 2 * size_t(each.run.ring_size()));  // passes, layers
  }
}

// What leaves a rank is on the link for as long as the link says, and the rank stands still for a slow one.
TEST_F(ProfileTest, AnEmulatedLinkTellsWhenItsMessagesTravel) {
  Config linked = config(2, 2);
  linked.run.link = "250kB/s,1ms";
  const Measured measured = measure(linked);
  for (const RankRecording& rank : measured.profile.recording.ranks) {
    int64_t spans = 0;
    for (const TransferSpan& transfer : rank.transfers) {
      if (transfer.direction != TransferObserver::Direction::out) continue;
      const double expected_us = 1000 * double(rank.posts[transfer.post].message_count) / 2 + double(transfer.bytes) / 0.25;
      EXPECT_NEAR(double(transfer.length_us()), expected_us, 2);  // as many messages leave as arrive, of two ranks
      ++spans;
    }
    EXPECT_GT(spans, 0);
  }
  const Overlap overlap = overlap_of(measured.profile.recording, Mask{});
  for (const RankOverlap& rank : overlap.ranks) EXPECT_GT(rank.exposed_ms - rank.late_ms, 0.5 * rank.exposed_ms);
  EXPECT_THAT(largest_waste(overlap, kRoomy),
              testing::AnyOf(testing::HasSubstr("messages of hop"), testing::HasSubstr("sums of gradients")));
}

/// A device whose work begins 5 ms after each call was made, at the earliest, and takes 20 ms.
class SlowClock final : public WorkClock {
 public:
  void begin(const char* name) override { names.push_back(name); }
  void end() override {
    const Time begin = std::max(Clock::now(), done_) + 5ms;
    done_ = begin + 20ms;
    stretches_.push_back({begin, done_});
  }
  std::vector<Stretch> take() override {
    std::this_thread::sleep_until(done_);
    return std::exchange(stretches_, {});
  }
  std::vector<std::string> names;

 private:
  using Clock = std::chrono::steady_clock;
  Time done_{};
  std::vector<Stretch> stretches_;
};

// What is recorded of a device that works behind the host's back is when it worked.
TEST(RankRecorder, AClockTellsWhenCallsWereDone) {
  Trace trace;
  std::vector<std::byte> memory(1000);
  Arena arena(memory.data(), 1000);
  SlowClock clock;
  RankRecorder recorder(trace, arena, &clock);
  const auto call = [&](Op op) {
    const OpCall one{.op = op};
    recorder.before_call(one);
    recorder.on_call(one, 0ns);
  };
  const auto wait = [&] {
    std::this_thread::sleep_for(100ms);  // longer than all that was asked takes
    trace.add_exposed_wait(30ms);
    recorder.on_wait({});
  };
  recorder.begin_step(1);  // a step before, so that places in the lists are not those in the step
  trace.enter_step(1, "data");
  call(Op::fill);
  recorder.end_step();
  call(Op::fill);  // of no step
  const size_t before = recorder.operations.size();
  recorder.begin_step(2);
  trace.enter_step(2, "data");
  std::this_thread::sleep_for(50ms);  // for the loader
  call(Op::upload);
  trace.enter_phase("forward");
  call(Op::attention_forward);
  trace.enter_phase("backward");
  wait();
  call(Op::attention_backward);
  wait();
  recorder.end_step();
  recorder.begin_step(3);
  recorder.end_step();

  ASSERT_EQ(clock.names.size(), before + 3);
  EXPECT_EQ(clock.names.back(), "attention_backward");
  const std::span operations = std::span(recorder.operations).subspan(before);
  ASSERT_EQ(operations.size(), 3u);
  for (const RankRecorder::Operation& operation : operations) EXPECT_EQ(operation.end_ns - operation.begin_ns, 20'000'000);
  EXPECT_EQ(operations[1].begin_ns - operations[0].end_ns, 5'000'000);  // called while the device was busy
  ASSERT_EQ(recorder.waits.size(), 2u);
  EXPECT_GE(recorder.waits[0].begin_ns, operations[1].end_ns);
  EXPECT_LE(recorder.waits[0].end_ns, operations[2].begin_ns);
  EXPECT_GE(recorder.waits[1].begin_ns, operations[2].end_ns);
  for (const RankRecorder::Wait& one : recorder.waits) EXPECT_NEAR(double(one.end_ns - one.begin_ns), 30e6, 1e6);
  const std::span phases = std::span(recorder.phases).subspan(1);
  ASSERT_EQ(phases.size(), 3u);
  EXPECT_GE(operations[0].begin_ns - phases[0].begin_ns, 50'000'000);  // when the host came to it, an idle device
  EXPECT_EQ(phases[1].begin_ns, operations[0].end_ns);                 // a busy one
  EXPECT_STREQ(phases[2].name, "backward");
  EXPECT_GE(phases[2].begin_ns, operations[1].end_ns);
  EXPECT_LE(phases[2].begin_ns, recorder.waits[0].begin_ns);
  ASSERT_EQ(recorder.steps.size(), 3u);
  EXPECT_GE(recorder.steps[1].end_ns, recorder.waits[1].end_ns);
  EXPECT_GT(recorder.steps[2].end_ns, recorder.steps[2].begin_ns);
}

TEST_F(ProfileTest, TheLargestWasteIsNamedWithItsAdvice) {
  Overlap overlap;
  overlap.ranks = {{.step_ms = 100, .compute_ms = 60, .exposed_ms = 20, .late_ms = 2, .loader_ms = 15}};
  overlap.hops = {{.phase = "forward", .hop = 1, .exposed_ms = 4}, {.phase = "backward", .hop = 2, .exposed_ms = 14}};
  EXPECT_THAT(largest_waste(overlap, kCrowded), testing::HasSubstr("the loader: 15.00 ms, 15.0 % of a step"));
  overlap.hops[1].exposed_ms = 16;
  EXPECT_THAT(largest_waste(overlap, kCrowded), testing::HasSubstr("hop 2 of the backward pass"));
  overlap.hops[1].late_ms = 16;
  overlap.ranks[0].late_ms = 18;
  EXPECT_THAT(largest_waste(overlap, kCrowded), testing::HasSubstr("4 threads share 2 cores"));
  EXPECT_THAT(largest_waste(overlap, kRoomy), testing::HasSubstr("work is even"));
  overlap.imbalance = 1.3;
  EXPECT_THAT(largest_waste(overlap, kRoomy), testing::HasSubstr("zigzag"));
}

TEST_F(ProfileTest, AStopEndsItWithoutATrace) {
  const Config two = config(2, 2);
  const Corpus tokens = Corpus::open(corpus);
  const WindowReader windows(tokens, two.run.seq_len);
  for (const int64_t after : {0, 1, 2}) {  // in the warm-up, in the first measured step, in the last
    std::atomic<int64_t> asked = 0;
    const auto stop = [&] { return ++asked > 2 * after + 1; };  // by one rank of two
    EXPECT_TRUE(record_profile(two, two.gpt(tokens.vocabulary()), windows, {2, 1}, stop).stopped) << after;
    EXPECT_EQ(asked, 2 * (after + 1));
  }
}

TEST_F(ProfileTest, TheCommandProfilesMadeUpTextAndRefusesAFolderThatExists) {
  const std::vector<std::string> arguments{"profile", RINGLET_SOURCE_DIR "/configs/tiny.toml", "--set",
                                           "data.corpus=nowhere.h5", "--seq-len", "96", "--steps", "1", "--warmup", "1",
                                           "-o", "traces", "--json"};
  const ProgramResult first = run_program(RINGLET_PROGRAM, arguments, folder.path());
  ASSERT_EQ(first.exit_code, 0) << first.errors;
  EXPECT_THAT(first.errors, testing::HasSubstr("no corpus 'nowhere.h5': profiling on made-up text"));
  const Json json = Json::parse(first.output);
  EXPECT_EQ(json["ranks"].size(), 2u);
  EXPECT_TRUE(std::filesystem::exists(folder.path() / "traces" / "rank_1.json"));
  const ProgramResult second = run_program(RINGLET_PROGRAM, arguments, folder.path());
  EXPECT_EQ(second.exit_code, 2);
  EXPECT_THAT(second.errors, testing::StartsWith("ringlet: the trace folder 'traces' exists\n  name another one"));
  for (const char* option : {"--steps", "--warmup"}) {
    const ProgramResult none = run_program(
        RINGLET_PROGRAM, {"profile", RINGLET_SOURCE_DIR "/configs/tiny.toml", "-o", "none", option, "0"}, folder.path());
    EXPECT_EQ(none.exit_code, 2) << none.errors;
    EXPECT_FALSE(std::filesystem::exists(folder.path() / "none"));
  }
}

}  // namespace
}  // namespace ringlet::test
