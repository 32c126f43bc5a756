// Does the error of ring attention grow with the ring? Measures it for Ringlet and, emulated, for
// two other ways to merge blocks. Exit code 1 where an error of Ringlet's grows beyond the bar.
#include "tests/bench/ring_error.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <ctime>
#include <filesystem>
#include <future>

#include "tests/support/bf16.h"
#include "tests/support/compare.h"
#include "tests/support/emulated_ring.h"
#include "train/commands/doctor.h"
#include "train/files.h"

namespace ringlet::bench {
namespace {

using namespace ringlet::test;

enum ExitCode { kHolds = 0, kFailed = 1, kWrongUsage = 2 };

struct Options {
  HeadShape shape{2, 2, 64};
  int64_t length = 4096;
  std::string layout = "zigzag", json, svg, markdown;
};

RingAttentionCase with_bf16_operands(RingAttentionCase c) {
  for (auto* const values : {&c.q, &c.k, &c.v, &c.d_output}) {
    std::ranges::transform(*values, values->begin(), round_to_bf16);
  }
  return c;
}

std::array<double, kQuantities.size()> errors_of(const RingAttentionValues<float>& actual,
                                                 const RingAttentionValues<double>& expected) {
  return {error_of(actual.output, expected.output), error_of(actual.lse, expected.lse),
          error_of(actual.dq, expected.dq), error_of(actual.dk, expected.dk),
          error_of(actual.dv, expected.dv)};
}

std::vector<Scheme> measure(const Options& options) {
  const Layout layout = layout_named(options.layout);
  const RingAttentionCase f32 = random_attention(options.shape, Mask{}, options.length);
  const RingAttentionCase bf16 = with_bf16_operands(f32);
  fmt::print(stderr, "dense attention in double\n");
  auto later = std::async(std::launch::async, [&] { return attend_densely(f32); });
  const RingAttentionValues<double> bf16_dense = attend_densely(bf16);
  const RingAttentionValues<double> f32_dense = later.get();

  std::vector<Scheme> schemes{
      {"Ringlet f32", "ringlet_f32", Origin::ringlet, {}},
      {"Ringlet, bf16 operands", "ringlet_bf16_operands", Origin::ringlet, {}},
      {"bf16 blocks, emulated", "bf16_blocks_emulated", Origin::emulated_peer, {}},
      {"bf16 sums, emulated", "bf16_sums_emulated", Origin::emulated_peer, {}},
  };
  for (const int ring_size : kRingSizes) {
    fmt::print(stderr, "R = {}\n", ring_size);
    const auto emulate = [&](Rounding accumulator) {
      const RingRounding rounding{round_to_bf16, accumulator};
      return errors_of(attend_on_emulated_ring(bf16, layout, ring_size, rounding), bf16_dense);
    };
    schemes[0].errors.push_back(errors_of(attend_on_ring(f32, layout, ring_size), f32_dense));
    schemes[1].errors.push_back(errors_of(
        attend_on_ring(bf16, layout, ring_size, plain_backend, round_to_bf16), bf16_dense));
    auto blocks = std::async(std::launch::async, emulate, keep_f32);
    schemes[3].errors.push_back(emulate(round_to_bf16));
    schemes[2].errors.push_back(blocks.get());
  }
  return schemes;
}

std::string processor_name() {
  std::string name;
  for (const Finding& finding : examine_machine()) {
    if (finding.name == "processor" || finding.name == "instructions") {
      name += (name.empty() ? "" : ", ") + finding.value;
    }
  }
  return name;
}

void check(const Options& options) {
  const HeadShape& shape = options.shape;
  if (shape.heads % shape.kv_heads != 0 || shape.head_dim % 8 != 0) {
    throw UsageError(fmt::format("{} heads, {} KV heads, head_dim {}", shape.heads, shape.kv_heads,
                                 shape.head_dim),
                     "KV heads must divide heads, and 8 must divide head_dim");
  }
}

void add_options(CLI::App& app, Options& options) {
  const auto add_count = [&](const char* name, int64_t& value, const char* meaning) {
    app.add_option(name, value, meaning)->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  };
  add_count("--length", options.length, "Tokens (default 4096)");
  add_count("--heads", options.shape.heads, "Query heads (default 2)");
  add_count("--kv-heads", options.shape.kv_heads, "Heads of keys and values (default 2)");
  add_count("--head-dim", options.shape.head_dim, "Width of a head (default 64)");
  app.add_option("--layout", options.layout, "Which rank holds what (default zigzag)")
      ->check(CLI::IsMember({"contiguous", "zigzag", "striped"}));
  app.add_option("--json", options.json, "Write all figures to this file");
  app.add_option("--svg", options.svg, "Write a plot to this file");
  app.add_option("--markdown", options.markdown, "Write a page with the tables to this file");
}

int run(const Options& options, const std::string& command) {
  check(options);
  RingErrorReport report{options.shape,
                         options.length,
                         layout_named(options.layout),
                         fmt::format("{:%Y-%m-%d}", fmt::gmtime(std::time(nullptr))),
                         processor_name(),
                         command,
                         measure(options)};
  const std::string picture = std::filesystem::path(options.svg).filename();
  if (!options.json.empty()) write_atomically(options.json, to_json(report));
  if (!options.svg.empty()) write_atomically(options.svg, to_svg(report));
  if (!options.markdown.empty()) write_atomically(options.markdown, to_markdown(report, picture));
  fmt::print("{}", to_tables(report));
  if (report.holds()) return kHolds;
  fmt::print(stderr, "ring_error: an error of Ringlet's grows beyond {} times\n", kGrowthBar);
  return kFailed;
}

}  // namespace
}  // namespace ringlet::bench

int main(int argument_count, char** arguments) {
  using namespace ringlet::bench;
  CLI::App app("Measures whether the error of ring attention grows with the ring.", "ring_error");
  Options options;
  add_options(app, options);
  try {
    app.parse(argument_count, arguments);
    std::string command;
    for (int i = 0; i < argument_count; ++i)
      command += (i == 0 ? "" : " ") + std::string(arguments[i]);
    return run(options, command);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kHolds : kWrongUsage;
  } catch (const ringlet::Error& error) {
    fmt::print(stderr, "ring_error: {}\n  {}\n", error.what(), error.advice);
    return dynamic_cast<const ringlet::UsageError*>(&error) ? kWrongUsage : kFailed;
  }
}
