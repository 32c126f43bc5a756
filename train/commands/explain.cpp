#include "train/commands/explain.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/check.h"
#include "train/config.h"
#include "train/console.h"
#include "train/explain/ring_svg.h"
#include "train/explain/ring_text.h"
#include "train/files.h"
#include "train/stages.h"
#include "train/units.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kMostCells = 64;         // ranks of a ring whose every cell is in the JSON
constexpr double kMostCounts = 1 << 26;  // ring * ring * documents: seconds

Config config_of(const ExplainOptions& options) {
  Console console;
  const auto say = [&](const std::string& line) { console.say(line); };
  if (!options.config.empty())
    return one_stage(load_config(options.config, options.overrides), options.stage, say);
  const auto names_ranks = [](const std::string& text) { return text.starts_with("run.ranks="); };
  if (std::ranges::none_of(options.overrides, names_ranks)) {
    throw UsageError("neither a config nor a number of ranks is given",
                     "ringlet explain --ranks 4 --seq-len 4k, or ringlet explain CONFIG.toml");
  }
  return parse_config("", "the default config", options.overrides);
}

Mask mask_of(const ExplainOptions& options, const Config& config) {
  Mask mask{{0}, config.data.window};
  if (!options.documents.empty()) mask.document_starts = document_starts(options.documents, config.run.seq_len);
  const double counts = double(config.run.ring_size()) * double(config.run.ring_size()) * double(mask.document_starts.size());
  if (counts > kMostCounts) {
    throw UsageError(fmt::format("{} documents on a ring of {} are too many to draw", mask.document_starts.size(),
                                 config.run.ring_size()),
                     "give fewer --documents, or a smaller ring");
  }
  return mask;
}

/// "causal, documents of 3000, 500 and 596 tokens, sliding window of 512"
std::string describe(const Mask& mask, int64_t length) {
  std::string text = "causal";
  const std::vector<int64_t>& starts = mask.document_starts;
  if (starts.size() > 1 && starts.size() <= 6) {
    text += ", documents of";
    for (size_t i = 0; i < starts.size(); ++i) {
      const int64_t end = i + 1 < starts.size() ? starts[i + 1] : length;
      text += fmt::format("{}{}", i == 0 ? " " : i + 1 == starts.size() ? " and " : ", ", end - starts[i]);
    }
    text += " tokens";
  } else if (starts.size() > 1) {
    text += fmt::format(", {} documents", starts.size());
  }
  if (mask.window > 0) text += fmt::format(", a query sees at most {} tokens", mask.window);
  return text;
}

Json to_json(const RingWork& work) {
  return {{"pairs", work.pairs}, {"skipped_pairs", work.skipped_pairs}, {"kv_tokens", work.kv_tokens},
          {"gradient_tokens", work.gradient_tokens}};
}

Json to_json(const RingPicture& picture) {
  Json json{{"layout", name_of(picture.name)}, {"largest_over_mean", picture.balance()},
            {"time_over_mean", picture.critical_path()}, {"work", to_json(picture.in_all())}};
  for (int rank = 0; rank < picture.ring_size(); ++rank) {
    Json entry{{"rank", rank}, {"tokens", picture.layout.rows(rank)}, {"pieces", Json::array()},
               {"work", to_json(picture.of_ranks()[size_t(rank)])}};
    for (const Piece& piece : picture.layout.ranks[size_t(rank)]) {
      entry["pieces"].push_back(
          {{"first_position", piece.first_position}, {"stride", piece.stride}, {"tokens", piece.row_count}});
    }
    for (int hop = 0; hop < picture.ring_size() && picture.ring_size() <= kMostCells; ++hop) {
      Json cell{{"owner", picture.owner_at(rank, hop)}};
      cell.update(to_json(picture.work(rank, hop)));
      entry["hops"].push_back(cell);
    }
    json["ranks"].push_back(entry);
  }
  for (int hop = 0; hop < picture.ring_size(); ++hop) {
    json["hops"].push_back({{"hop", hop}, {"largest_pairs", picture.largest_pairs(hop)},
                            {"work", to_json(picture.of_hops()[size_t(hop)])}});
  }
  return json;
}

}  // namespace

std::vector<int64_t> document_starts(const std::string& lengths, int64_t length) {
  std::vector<int64_t> starts;
  int64_t end = 0;
  std::istringstream stream(lengths + ',');
  for (std::string word; std::getline(stream, word, ',');) {
    starts.push_back(end);
    end += parse_tokens(word);
    if (end > length) {
      throw UsageError(fmt::format("the documents up to number {} have {} tokens, the window has {}", starts.size(), end, length),
                       "shorten them, or give a longer --seq-len");
    }
  }
  if (end < length) starts.push_back(end);
  return starts;
}

void explain(const ExplainOptions& options) {
  const Config config = config_of(options);
  const int64_t length = config.run.seq_len, rings = config.run.ranks / config.run.ring_size();
  const Mask mask = mask_of(options, config);
  std::vector<Layout> layouts = options.layouts;
  if (layouts.empty() && !options.config.empty()) layouts = {config.run.layout};
  if (layouts.empty()) layouts = {Layout::contiguous, Layout::zigzag, Layout::striped};
  std::vector<RingPicture> pictures;
  pictures.reserve(layouts.size());
  for (const Layout layout : layouts) {
    pictures.emplace_back(layout, length, int(config.run.ring_size()), mask, int(config.run.pieces));
  }

  const int64_t token_bytes = options.config.empty() ? 0 : config.gpt(1).kv_token_bytes();
  const std::string title = fmt::format("a ring of {}, T = {}, {}", config.run.ring_size(), length, describe(mask, length));
  if (!options.svg.empty()) write_atomically(options.svg, to_svg(pictures, title));
  if (options.format == OutputFormat::json) {
    Json json{{"seq_len", length}, {"ranks", config.run.ranks}, {"ring", config.run.ring_size()}, {"window", mask.window},
              {"document_starts", mask.document_starts}, {"token_bytes", token_bytes}};
    for (const RingPicture& picture : pictures) json["layouts"].push_back(to_json(picture));
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}\n{}one attention layer, one window of tokens\n\n{}", title,
             rings > 1 ? fmt::format("{} such rings; ", rings) : "", to_text(pictures, token_bytes));
  if (!options.svg.empty()) fmt::print("\n{} has it as a picture\n", options.svg);
}

}  // namespace ringlet
