#include "train/explain/ring_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "train/console.h"

namespace ringlet {
namespace {

constexpr int kColumns = 100, kStripColumns = 64;
constexpr int kNumberColumns = 44, kLongestBar = 30;                 // of a line of the table of ranks, a bar
constexpr int kMostHops = 8, kMostRanks = 16;                        // that are shown
constexpr int kGap = -1;                                             // stands for those that are not
constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuvwxyz";
constexpr double kEqual = 1.05;  // up to which work counts as equal in words

constexpr const char* kLegend =
    "hop by hop: the rank whose keys and values are in hand, and how many of the pairs are visible\n"
    "  █ all  ▒ some  · none: skipped;  then  → the block moves on  ⇢ a part of it does, no later rank\n"
    "  needs the rest; nothing: no later rank needs it\n"
    "time: the busiest rank's work at the hop over the mean work of a rank in all; a ring in step, where\n"
    "  all wait for the busiest, takes the sum of these: 1 at best\n"
    "KV sent, not sent: tokens whose keys and values move on, of all ranks together, and those that no\n"
    "  later rank needs; they travel forward, and once more backward. dK/dV: tokens whose gradients do\n";

/// A number of few characters.
std::string count_text(int64_t count, int64_t exact_below) {
  return count < exact_below ? std::to_string(count) : human_count(double(count));
}

std::string tokens_text(int64_t tokens, int64_t token_bytes) {
  const std::string text = count_text(tokens, 10'000'000);
  return token_bytes == 0 ? text : fmt::format("{} ({})", text, human_bytes(double(tokens) * double(token_bytes)));
}

double percent(int64_t part, int64_t whole) { return 100 * double(part) / double(whole); }

std::vector<int> with_gap(int count, int most) {
  std::vector<int> shown = first_and_last(count, most);
  if (int(shown.size()) < count) shown.insert(shown.begin() + (most + 1) / 2, kGap);
  return shown;
}

std::string hidden_ranks(int size) { return fmt::format("  .. {} more", size - kMostRanks); }

/// Position `column` of `columns` equal parts of [0, length).
int64_t bound(int64_t length, int column, int columns) { return length * column / columns; }

/// A letter for each part of [0, length): the rank that holds all of it, or a star.
std::string strip(const RingPicture& picture, int64_t length, int columns) {
  std::string text(size_t(columns), '*');
  for (int column = 0; column < columns; ++column) {
    const int64_t begin = bound(length, column, columns), end = bound(length, column + 1, columns);
    for (int rank = 0; rank < picture.ring_size(); ++rank) {
      if (picture.held(rank, begin, end) == end - begin) text[size_t(column)] = kLetters[size_t(rank)];
    }
  }
  return text;
}

std::string ownership(const RingPicture& picture) {
  const int64_t length = picture.layout.length;
  const int columns = int(std::min<int64_t>(length, kStripColumns));
  if (picture.ring_size() > int(kLetters.size())) return "";
  const std::string whole = strip(picture, length, columns);
  const bool even = length % columns == 0;
  std::string text = fmt::format("\n  positions  {}  {} to a letter\n", whole,
                                 even ? std::to_string(length / columns) : fmt::format("{:.1f}", double(length) / columns));
  if (whole.find('*') != std::string::npos) {
    text += fmt::format("  the first  {}  one by one, *: shared\n", strip(picture, columns, columns));
  }
  const std::vector<int64_t>& starts = picture.mask.document_starts;
  if (starts.size() == 1) return text;
  text += "  documents  ";
  for (int column = 0; column < columns; ++column) {
    const auto first = std::ranges::lower_bound(starts, bound(length, column, columns));
    text += first != starts.end() && *first < bound(length, column + 1, columns) ? '|' : ' ';
  }
  return text + "  | a document begins\n";
}

std::string cell(const RingPicture& picture, int rank, int hop, bool with_share) {
  const RingWork work = picture.work(rank, hop);
  const int owner = picture.owner_at(rank, hop);
  const bool skipped = work.skipped_pairs == work.block_pairs, all = work.pairs == work.block_pairs;
  std::string text = fmt::format("{}{}", owner, skipped ? "·" : all ? "█" : "▒");
  if (with_share) text += skipped ? "     " : fmt::format("{:4.0f}%", percent(work.pairs, work.block_pairs));
  const bool whole = work.kv_tokens == picture.layout.rows(owner);
  return text + (work.kv_tokens == 0 ? " " : whole ? "→" : "⇢");
}

/// One line of the hop table: a label, a value for each hop that is shown, one for all hops.
using HopLine = std::vector<std::string>;
HopLine hop_line(std::string label, const std::vector<int>& hops, const std::function<std::string(int)>& at_hop,
                 std::string in_all) {
  HopLine line{"  " + std::move(label)};
  for (const int hop : hops) line.push_back(hop == kGap ? ".." : at_hop(hop));
  line.push_back(std::move(in_all));
  return line;
}

std::string hop_table(const RingPicture& picture) {
  const int size = picture.ring_size();
  const int64_t length = picture.layout.length;
  const std::vector<int> hops = with_gap(size, kMostHops);
  const bool with_share = size <= kMostHops;
  const auto count = [](int64_t tokens) { return tokens == 0 ? "-" : count_text(tokens, 100'000); };
  // Every block could move on at each hop but the last.
  const auto not_sent = [&](int hop) {
    return hop + 1 < size ? length - picture.of_hops()[size_t(hop)].kv_tokens : 0;
  };
  const auto line = [&](const char* label, const auto& at_hop, const std::string& in_all) {
    return hop_line(label, hops, at_hop, in_all);
  };
  std::vector<HopLine> table{line("hop", [](int hop) { return std::to_string(hop); }, "all hops")};
  for (const int rank : with_gap(size, kMostRanks)) {
    table.push_back(rank == kGap ? HopLine{hidden_ranks(size)}
                                 : line(fmt::format("rank {}", rank).c_str(),
                                        [&](int hop) { return cell(picture, rank, hop, with_share); }, ""));
  }
  const RingWork& all = picture.in_all();
  const auto time = [&](int hop) {
    const double part = double(picture.largest_pairs(hop)) / picture.mean_pairs();
    return part > 0 && part < 0.01 ? fmt::format("{:.1g}", part) : fmt::format("{:.2f}", part);
  };
  table.push_back(line("time", time, fmt::format("{:.2f}", picture.critical_path())));
  table.push_back(line("KV sent", [&](int hop) { return count(picture.of_hops()[size_t(hop)].kv_tokens); },
                       count(all.kv_tokens)));
  table.push_back(line("not sent", [&](int hop) { return count(not_sent(hop)); },
                       count((size - 1) * length - all.kv_tokens)));
  table.push_back(line("dK/dV", [&](int hop) { return count(picture.of_hops()[size_t(hop)].gradient_tokens); },
                       count(all.gradient_tokens)));
  return format_table(table);
}

/// "0-511, 3584-4095" or "0, 4, .. 4092".
std::string holdings(const std::vector<Piece>& pieces) {
  std::string text;
  for (const Piece& piece : joined(pieces)) {
    const int64_t begin = piece.first_position, last = piece.last_position();
    if (piece.stride > 1 && piece.row_count > 2) return fmt::format("{}, {}, .. {}", begin, piece.position(1), last);
    const char* between = piece.stride > 1 ? ", " : "-";
    text += (text.empty() ? "" : ", ") + (begin == last ? fmt::format("{}", begin) : fmt::format("{}{}{}", begin, between, last));
  }
  return text.empty() ? "nothing" : text;
}

std::string rank_table(const RingPicture& picture) {
  const int size = picture.ring_size();
  const auto largest = double(picture.of_ranks()[size_t(picture.busiest_rank())].pairs);
  const auto count = [](int64_t value) { return count_text(value, 1'000'000); };
  const std::vector<int> ranks = with_gap(size, kMostRanks);
  std::vector<std::string> labels;
  size_t widest = 0;
  for (const int rank : ranks) {
    labels.push_back(rank == kGap ? hidden_ranks(size)
                                  : fmt::format("  {}: {}", rank, holdings(picture.layout.ranks[size_t(rank)])));
    widest = std::max(widest, labels.back().size());
  }
  const int bar_width = std::min(kLongestBar, kColumns - kNumberColumns - int(widest));
  std::vector<std::vector<std::string>> table{
      {"  rank: holds", "tokens", "KV sent", "dK/dV", "pairs", "of mean", fmt::format("{:<{}}", "work", bar_width)}};
  for (size_t i = 0; i < ranks.size(); ++i) {
    table.push_back({labels[i]});
    if (ranks[i] == kGap) continue;
    const RingWork& work = picture.of_ranks()[size_t(ranks[i])];
    std::string bar;
    for (int64_t length = std::lround(bar_width * double(work.pairs) / largest); length > 0; --length) bar += "█";
    for (const int64_t value : {picture.layout.rows(ranks[i]), work.kv_tokens, work.gradient_tokens, work.pairs}) {
      table.back().push_back(count(value));
    }
    table.back().push_back(fmt::format("{:.2f}", double(work.pairs) / picture.mean_pairs()));
    table.back().push_back(fmt::format("{:<{}}", bar, bar_width));
  }
  return format_table(table);
}

std::string totals(const RingPicture& picture, int64_t token_bytes) {
  const RingWork& all = picture.in_all();
  return fmt::format(
      "  visible: {} pairs, {:.1f} % of T x T; {:.1f} % skipped: queries that see nothing of a piece\n"
      "  largest work over mean {:.2f}, time {:.2f}\n"
      "  sent: {} forward, {} backward\n",
      count_text(all.pairs, 10'000'000'000), percent(all.pairs, all.block_pairs),
      percent(all.skipped_pairs, all.block_pairs), picture.balance(), picture.critical_path(),
      tokens_text(all.kv_tokens, token_bytes), tokens_text(all.kv_tokens + all.gradient_tokens, token_bytes));
}

std::string in_words(const RingPicture& picture) {
  const int size = picture.ring_size();
  if (size == 1) return "a ring of one: nothing travels";
  const double time = picture.critical_path(), balance = picture.balance();
  const auto more = [&](const std::string& end) {
    return fmt::format("rank {} has {:.2f} times the mean work, {}", picture.busiest_rank(), balance, end);
  };
  std::string text = time <= kEqual      ? "equal work for all at every hop: no rank waits for another"
                     : balance <= kEqual ? fmt::format("equal work in all, but not at every hop: {:.2f} times as long", time)
                     : time - balance < kEqual - 1
                         ? more("and all the others wait for it")
                         : more(fmt::format("some hops wait for others: {:.2f} times as long", time));
  const int64_t could = (size - 1) * picture.layout.length;
  const double saved = percent(could - picture.in_all().kv_tokens, could);
  text += saved > 0 ? fmt::format(";\n  {:.0f} % of what could travel need not", saved) : ";\n  every block travels all the way";
  int64_t idle = 0;
  for (int rank = 0; rank < size; ++rank) idle += picture.layout.ranks[size_t(rank)].empty() ? 1 : 0;
  if (idle > 0) text += fmt::format("; {} of {} ranks hold nothing, T is too short for them", idle, size);
  return text;
}

const char* rule(Layout layout) {
  switch (layout) {
    case Layout::contiguous: return "rank r holds chunk r of R, in tiles of 64";
    case Layout::zigzag: return "rank r holds chunks r and 2R-1-r of 2R";
    case Layout::striped: return "rank r holds positions r, r+R, r+2R, ...";
  }
  return "";
}

std::string side_by_side(std::span<const RingPicture> pictures, int64_t token_bytes) {
  std::vector<std::vector<std::string>> table{
      {"side by side", "largest / mean", "time", "skipped", "sent forward", "sent backward"}};
  for (const RingPicture& picture : pictures) {
    const RingWork& all = picture.in_all();
    table.push_back({name_of(picture.name), fmt::format("{:.2f}", picture.balance()),
                     fmt::format("{:.2f}", picture.critical_path()),
                     fmt::format("{:.1f} %", percent(all.skipped_pairs, all.block_pairs)),
                     tokens_text(all.kv_tokens, token_bytes),
                     tokens_text(all.kv_tokens + all.gradient_tokens, token_bytes)});
  }
  return format_table(table);
}

}  // namespace

std::string to_text(std::span<const RingPicture> pictures, int64_t token_bytes) {
  std::string text = kLegend;
  for (const RingPicture& picture : pictures) {
    text += fmt::format("\n{}: {}\n{}\n{}\n{}\n{}  in words: {}\n", name_of(picture.name), rule(picture.name),
                        ownership(picture), hop_table(picture), rank_table(picture), totals(picture, token_bytes),
                        in_words(picture));
  }
  if (pictures.size() > 1) text += '\n' + side_by_side(pictures, token_bytes);
  return text;
}

}  // namespace ringlet
