#include "train/explain/ring_svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "train/console.h"

namespace ringlet {
namespace {

constexpr int kCells = 64;        // of the mask picture, and columns of the strip, at most
constexpr int kMostLabels = 16;   // ranks with a label, and with a line of their own in the time line
constexpr int kMostHopsDrawn = 8;      // hops that are written into their blocks
constexpr int kMostLines = 32;    // ranks whose blocks are outlined
constexpr double kSide = 300, kMargin = 34, kPanel = kSide + kMargin + 18, kLetter = 7.6;
constexpr double kStripTop = 92, kStripHeight = 36, kMaskTop = 186, kTimeTop = kMaskTop + kSide + 48, kTimeHeight = 200;
constexpr double kHeight = kTimeTop + kTimeHeight + 86;
constexpr const char* kInk = "#777";
/// Neighbours differ in hue; contrast above 3 to white and to near black.
constexpr std::array kColours{"#2f7fd0", "#b8741a", "#2a8f5c", "#d6506b", "#8a63d2", "#1b8c96", "#a0633f", "#7d7f2a"};

/// Rows of the ring's tokens, rank by rank, that share a row and a column of the mask picture.
struct Band {
  int first_rank = 0;
  std::vector<Piece> pieces;
};

/// The rows [begin, end) of a rank.
std::vector<Piece> rows_between(const std::vector<Piece>& pieces, int64_t begin, int64_t end) {
  std::vector<Piece> part;
  for (const Piece& piece : pieces) {
    const int64_t first = std::max(begin, piece.first_row), last = std::min(end, piece.first_row + piece.row_count);
    if (first < last) part.push_back({piece.position(first - piece.first_row), piece.stride, first, last - first});
  }
  return part;
}

/// Each rank in as many bands as fit, or several ranks in one.
std::vector<Band> bands_of(const RingPicture& picture) {
  const int size = picture.ring_size();
  const int64_t most_rows = picture.layout.max_rows();
  std::vector<Band> bands;
  if (size <= kCells) {
    const int64_t of_rank = std::min<int64_t>(kCells / size, most_rows);
    for (int rank = 0; rank < size; ++rank) {
      for (int64_t i = 0; i < of_rank; ++i) {
        bands.push_back({rank, rows_between(picture.layout.ranks[size_t(rank)], most_rows * i / of_rank,
                                            most_rows * (i + 1) / of_rank)});
      }
    }
    return bands;
  }
  for (int band = 0; band < kCells; ++band) {
    bands.push_back({size * band / kCells, {}});
    for (int rank = size * band / kCells; rank < size * (band + 1) / kCells; ++rank) {
      const std::vector<Piece>& pieces = picture.layout.ranks[size_t(rank)];
      bands.back().pieces.insert(bands.back().pieces.end(), pieces.begin(), pieces.end());
    }
  }
  return bands;
}

int64_t row_count(const Band& band) {
  int64_t rows = 0;
  for (const Piece& piece : band.pieces) rows += piece.row_count;
  return rows;
}

int64_t pairs_of(const Mask& mask, const Band& queries, const Band& keys) {
  int64_t pairs = 0;
  for (const Piece& from : queries.pieces) {
    for (const Piece& to : keys.pieces) pairs += visible_pairs(mask, from, to);
  }
  return pairs;
}

/// One layout. (x, y) are those of the panel.
class Panel {
 public:
  /// longest: what the time line is as wide as, in mean works of a rank.
  Panel(const RingPicture& picture, double left, double longest) : picture_(picture), left_(left), longest_(longest) {}

  std::string draw() {
    text(0, 62, "start", name_of(picture_.name), "font-size=\"17\" font-weight=\"bold\"");
    strip();
    mask();
    blocks();
    time_line();
    caption();
    return svg_;
  }

 private:
  int size() const { return picture_.ring_size(); }
  std::string colour_of(int rank) const {
    const int band = size() <= kCells ? rank : rank * kCells / size();
    return kColours[size_t(band) % kColours.size()];
  }

  void text(double x, double y, const char* anchor, const std::string& words, const std::string& attributes = "") {
    svg_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", left_ + x, y, anchor, attributes,
                        words);
  }
  void box(double x, double y, double width, double height, const std::string& colour, double opacity = 1) {
    svg_ += fmt::format("<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\"", left_ + x, y, width,
                        height, colour);
    svg_ += opacity < 1 ? fmt::format(" fill-opacity=\"{:.2f}\"/>\n", opacity) : "/>\n";
  }
  void line(double x1, double y1, double x2, double y2, const char* attributes) {
    svg_ += fmt::format("<path d=\"M{:.2f},{:.2f}L{:.2f},{:.2f}\" stroke=\"{}\" shape-rendering=\"auto\" {}/>\n", left_ + x1, y1,
                        left_ + x2, y2, kInk, attributes);
  }

  /// The positions from left to right; of columns that several ranks share each has its part from top to bottom.
  void strip() {
    const int64_t length = picture_.layout.length;
    const int columns = int(std::min<int64_t>(length, kCells));
    const int groups = std::min(size(), kCells);
    text(0, kStripTop - 7, "start", "positions, by the rank that holds them", "font-size=\"12\"");
    std::vector<double> from(size_t(columns), 0);  // what is taken of each column
    for (int group = 0; group < groups; ++group) {
      std::vector<double> share(size_t(columns), 0);
      for (int column = 0; column < columns; ++column) {
        const int64_t begin = length * column / columns, end = length * (column + 1) / columns;
        for (int rank = size() * group / groups; rank < size() * (group + 1) / groups; ++rank) {
          share[size_t(column)] += double(picture_.held(rank, begin, end)) / double(end - begin);
        }
      }
      strip_group(size() * group / groups, share, from);
    }
    text(0, kStripTop + kStripHeight + 14, "start", "0", "font-size=\"11\"");
    text(kSide, kStripTop + kStripHeight + 14, "end", std::to_string(length - 1), "font-size=\"11\"");
  }

  void strip_group(int rank, const std::vector<double>& share, std::vector<double>& from) {
    const size_t columns = share.size();
    const double width = kSide / double(columns);
    for (size_t begin = 0, end = 0; begin < columns; begin = end) {
      end = begin + 1;
      if (share[begin] == 0) continue;
      while (end < columns && share[end] == share[begin] && from[end] == from[begin]) ++end;
      box(width * double(begin), kStripTop + kStripHeight * from[begin], width * double(end - begin),
          kStripHeight * share[begin], colour_of(rank));
    }
    for (size_t column = 0; column < columns; ++column) from[column] += share[column];
  }

  /// Queries downwards, keys to the right, both rank by rank; the share of visible pairs as the depth of the colour.
  void mask() {
    const std::vector<Band> bands = bands_of(picture_);
    const double side = kSide / double(bands.size());
    text(0, kMaskTop - 20, "start", "queries (down) and keys (right), both rank by rank:", "font-size=\"12\"");
    text(0, kMaskTop - 6, "start", "what is visible, and at which hop they meet", "font-size=\"12\"");
    for (size_t i = 0; i < bands.size(); ++i) {
      double last = 0;
      size_t begin = 0;
      for (size_t j = 0; j <= bands.size(); ++j) {
        const double all = j < bands.size() ? double(row_count(bands[i])) * double(row_count(bands[j])) : 0;
        const double share = all > 0 ? double(pairs_of(picture_.mask, bands[i], bands[j])) / all : 0;
        if (j < bands.size() && share == last) continue;
        if (last > 0) {
          box(side * double(begin), kMaskTop + side * double(i), side * double(j - begin), side,
              colour_of(bands[i].first_rank), 0.2 + 0.8 * last);
        }
        last = share;
        begin = j;
      }
    }
  }

  void blocks() {
    const int lines = size() <= kMostLines ? size() : 1;
    for (int i = 0; i <= lines; ++i) {
      const double at = kSide * i / lines;
      const char* width = i == 0 || i == lines ? "stroke-width=\"1.2\"" : "stroke-width=\"0.6\"";
      line(at, kMaskTop, at, kMaskTop + kSide, width);
      line(0, kMaskTop + at, kSide, kMaskTop + at, width);
    }
    const double side = kSide / lines;
    for (int rank = 0; rank < size() && size() <= kMostLabels; ++rank) {
      text(-6, kMaskTop + side * (rank + 0.5) + 4, "end", std::to_string(rank),
           fmt::format("font-size=\"12\" fill=\"{}\" font-weight=\"bold\"", colour_of(rank)));
      for (int hop = 0; hop < size() && size() <= kMostHopsDrawn; ++hop) {
        const int owner = picture_.owner_at(rank, hop);
        text(side * owner + side - 4, kMaskTop + side * rank + 13, "end", std::to_string(hop),
             corner_is_coloured(rank, owner) ? "font-size=\"11\" fill=\"#fff\"" : "font-size=\"11\"");
      }
    }
    text(0, kMaskTop + kSide + 15, "start",
         size() <= kMostHopsDrawn ? "in the corners: the hop" : fmt::format("{} x {} blocks", size(), size()), "font-size=\"11\"");
  }

  /// Do the first queries of a rank see the last keys of an owner?
  bool corner_is_coloured(int rank, int owner) const {
    const int64_t rows = picture_.layout.max_rows(), part = rows / 4 + 1;
    const Band queries{rank, rows_between(picture_.layout.ranks[size_t(rank)], 0, part)};
    const Band keys{owner, rows_between(picture_.layout.ranks[size_t(owner)], rows - part, rows)};
    return pairs_of(picture_.mask, queries, keys) > 0;
  }

  /// Each hop begins when the rank that had most at the hop before is done.
  void time_line() {
    const bool by_owner = size() <= kMostLabels;
    text(0, kTimeTop - 6, "start", by_owner ? "work in step, hop by hop, coloured by owner" : "work in step, hop by hop",
         "font-size=\"12\"");
    const std::vector<int> ranks = first_and_last(size(), kMostLabels);
    const double height = kTimeHeight / double(ranks.size());
    const double scale = kSide / (longest_ * picture_.mean_pairs());
    for (size_t i = 0; i < ranks.size(); ++i) {
      const double y = kTimeTop + height * double(i);
      text(-6, y + height / 2 + 4, "end", std::to_string(ranks[i]), "font-size=\"11\"");
      rank_line(ranks[i], y + 0.08 * height, 0.84 * height, scale);
    }
    double begin = 0;
    for (int hop = 0; hop < size() && by_owner; ++hop) {
      begin += scale * double(picture_.largest_pairs(hop));
      line(begin, kTimeTop, begin, kTimeTop + kTimeHeight, "stroke-width=\"0.6\"");
    }
    const double mean = scale * picture_.mean_pairs();
    line(mean, kTimeTop, mean, kTimeTop + kTimeHeight + 8, "stroke-width=\"2\" stroke-dasharray=\"5 3\"");
    text(mean, kTimeTop + kTimeHeight + 20, "middle", "equal work", "font-size=\"11\"");
  }

  void rank_line(int rank, double y, double height, double scale) {
    const bool by_owner = size() <= kMostLabels;
    double hop_begin = 0, from = 0, to = 0;  // [from, to): of one colour, not drawn yet
    std::string colour = colour_of(rank);
    const auto draw = [&] {
      if (to > from) box(from, y, to - from, height, colour);
    };
    for (int hop = 0; hop < size(); ++hop) {
      const double width = scale * double(picture_.work(rank, hop).pairs);
      if (by_owner || hop_begin > to + 0.05) {
        draw();
        if (by_owner) colour = colour_of(picture_.owner_at(rank, hop));
        from = hop_begin;
      }
      to = hop_begin + width;
      hop_begin += scale * double(picture_.largest_pairs(hop));
    }
    draw();
  }

  void caption() {
    const RingWork& all = picture_.in_all();
    const double y = kTimeTop + kTimeHeight + 44;
    text(0, y, "start", fmt::format("largest work over mean {:.2f}, time {:.2f}", picture_.balance(), picture_.critical_path()));
    text(0, y + 18, "start",
         fmt::format("skipped {:.1f} % of all pairs", 100 * double(all.skipped_pairs) / double(all.block_pairs)));
    const auto count = [](int64_t tokens) { return tokens < 10'000'000 ? std::to_string(tokens) : human_count(double(tokens)); };
    text(0, y + 36, "start",
         fmt::format("sent: {} tokens forward, {} backward", count(all.kv_tokens), count(all.kv_tokens + all.gradient_tokens)));
  }

  const RingPicture& picture_;
  const double left_, longest_;
  std::string svg_;
};

}  // namespace

std::string to_svg(std::span<const RingPicture> pictures, std::string_view title) {
  double longest = 1;
  for (const RingPicture& picture : pictures) longest = std::max(longest, picture.critical_path());
  std::string panels;
  double left = kMargin;
  for (const RingPicture& picture : pictures) {
    panels += Panel(picture, left, longest).draw();
    left += kPanel;
  }
  const double width = std::max(left, 2 * kMargin + kLetter * double(title.size()));
  return fmt::format(
             "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
             "height=\"{1:.0f}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" font-size=\"13\" "
             "fill=\"{2}\" shape-rendering=\"crispEdges\">\n<title>{3}</title>\n"
             "<text x=\"{4:.0f}\" y=\"30\" font-size=\"15\">{3}</text>\n",
             width, kHeight, kInk, title, kMargin) +
         panels + "</svg>\n";
}

}  // namespace ringlet
