#include "model/sequence_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "kernels/check.h"
#include "kernels/random.h"

namespace ringlet {
namespace {

constexpr std::array kLayouts{Layout::contiguous, Layout::zigzag, Layout::striped};

class EveryLayout : public testing::TestWithParam<std::tuple<Layout, int64_t, int>> {
 protected:
  SequenceLayout layout(int pieces) const {
    const auto& [name, length, ring_size] = GetParam();
    return make_layout(name, length, ring_size, pieces);
  }
  const int64_t length_ = std::get<1>(GetParam());
};

TEST_P(EveryLayout, HoldsEveryPositionOnceInRowsWithoutGaps) {
  for (const int pieces : {0, 3, 16}) {
    const SequenceLayout layout = this->layout(pieces);
    EXPECT_EQ(layout.ring_size(), std::get<2>(GetParam()));
    EXPECT_EQ(layout.length, length_);
    std::vector<int> held(size_t(length_), 0);
    int64_t most = 0;
    for (int rank = 0; rank < layout.ring_size(); ++rank) {
      int64_t row = 0;
      for (const Piece& piece : layout.ranks[size_t(rank)]) {
        EXPECT_GT(piece.row_count, 0);
        EXPECT_EQ(piece.first_row, row);
        row += piece.row_count;
        for (int64_t i = 0; i < piece.row_count; ++i) ++held.at(size_t(piece.position(i)));
      }
      EXPECT_EQ(layout.rows(rank), row);
      most = std::max(most, row);
    }
    EXPECT_EQ(layout.max_rows(), most);
    EXPECT_EQ(std::count(held.begin(), held.end(), 1), length_);
  }
}

TEST_P(EveryLayout, KeepsPositionsOfARankAscending) {
  for (const int count : {0, 3, 16}) {
    for (const auto& pieces : layout(count).ranks) {
      int64_t last = -1;
      for (const Piece& piece : pieces) {
        EXPECT_GT(piece.first_position, last);
        EXPECT_GE(piece.stride, 1);
        last = piece.last_position();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(LengthsAndRings, EveryLayout,
                         testing::Combine(testing::ValuesIn(kLayouts),
                                          testing::Values(1, 2, 7, 63, 64, 65, 127, 256, 1009),
                                          testing::Values(1, 2, 3, 4, 8, 13, 70)));

TEST(Pieces, ThatTouchJoinToTheSameRows) {
  for (const Layout name : kLayouts) {
    for (const int64_t length : {1, 7, 65, 1009}) {
      for (const int ring_size : {1, 2, 3, 8}) {
        const SequenceLayout whole = make_layout(name, length, ring_size), cut = make_layout(name, length, ring_size, 16);
        for (size_t rank = 0; rank < whole.ranks.size(); ++rank) {
          EXPECT_EQ(joined(cut.ranks[rank]), joined(whole.ranks[rank]));
          EXPECT_LE(joined(cut.ranks[rank]).size(), name == Layout::zigzag ? 2u : 1u);
        }
      }
    }
  }
}

TEST(Pieces, AreAsManyAsAskedWhereRowsAllowItAndOfWholeTilesWhereTheyAreLong) {
  for (const Layout name : kLayouts) {
    const SequenceLayout layout = make_layout(name, 8192, 4, 8);
    EXPECT_EQ(layout.most_pieces(), 8) << name_of(name);
    for (const std::vector<Piece>& rank : layout.ranks) {
      EXPECT_EQ(rank.size(), 8u);
      for (const Piece& piece : rank) EXPECT_EQ(piece.row_count, 256);
    }
    EXPECT_EQ(make_layout(name, 8192, 1, 8).ranks, make_layout(name, 8192, 1).ranks) << "nothing travels";
    EXPECT_EQ(make_layout(name, 8192, 4, 1).ranks, make_layout(name, 8192, 4).ranks) << "no fewer than it needs";
  }
  EXPECT_EQ(make_layout(Layout::contiguous, 512, 2, 16).most_pieces(), 4);  // four tiles a rank
  EXPECT_EQ(make_layout(Layout::striped, 10, 2, 16).most_pieces(), 5);      // five rows a rank
  EXPECT_EQ(make_layout(Layout::zigzag, 1000, 3, 3).ranks[0],
            (std::vector<Piece>{{0, 1, 0, 128}, {128, 1, 128, 39}, {834, 1, 167, 128}, {962, 1, 295, 38}}));
}

TEST(Contiguous, PiecesAreInOrderAndBeginAtMultiplesOf64) {
  for (const int64_t length : {1, 64, 65, 200, 1000, 4097}) {
    for (const int ring_size : {1, 2, 3, 5, 8}) {
      const SequenceLayout layout = make_layout(Layout::contiguous, length, ring_size, ring_size % 2 == 1 ? 7 : 0);
      EXPECT_EQ(layout.tile, 64);
      int64_t next = 0;
      for (const auto& pieces : layout.ranks) {
        for (const Piece& piece : pieces) {
          EXPECT_EQ(piece.first_position % 64, 0);
          EXPECT_EQ(piece.first_position, next);
          EXPECT_EQ(piece.stride, 1);
          next = piece.last_position() + 1;
        }
      }
    }
  }
}

TEST(Contiguous, LaterRanksMayHoldFewerRowsOrNone) {
  const SequenceLayout layout = make_layout(Layout::contiguous, 200, 3);
  EXPECT_EQ(layout.ranks[0], (std::vector<Piece>{{0, 1, 0, 64}, {64, 1, 64, 64}}));
  EXPECT_EQ(layout.ranks[1], (std::vector<Piece>{{128, 1, 0, 64}, {192, 1, 64, 8}}));
  EXPECT_TRUE(layout.ranks[2].empty());
}

TEST(Contiguous, AChunkOfOneTileIsOnePieceAndTheFirstOfTwoIsNotTheSmaller) {
  const SequenceLayout layout = make_layout(Layout::contiguous, 320, 2);
  EXPECT_EQ(layout.ranks[0], (std::vector<Piece>{{0, 1, 0, 128}, {128, 1, 128, 64}}));
  EXPECT_EQ(make_layout(Layout::contiguous, 128, 2).ranks[1], (std::vector<Piece>{{64, 1, 0, 64}}));
}

TEST(Zigzag, RankHoldsAnEarlyAndTheMatchingLateChunk) {
  const SequenceLayout layout = make_layout(Layout::zigzag, 18, 4);  // chunks 3 3 2 2 2 2 2 2
  EXPECT_EQ(layout.ranks[0], (std::vector<Piece>{{0, 1, 0, 3}, {16, 1, 3, 2}}));
  EXPECT_EQ(layout.ranks[1], (std::vector<Piece>{{3, 1, 0, 3}, {14, 1, 3, 2}}));
  EXPECT_EQ(layout.ranks[2], (std::vector<Piece>{{6, 1, 0, 2}, {12, 1, 2, 2}}));
  EXPECT_EQ(layout.ranks[3], (std::vector<Piece>{{8, 1, 0, 4}}));  // its chunks touch
}

TEST(Zigzag, ARingOfOneIsOnePiece) {
  EXPECT_EQ(make_layout(Layout::zigzag, 99, 1).ranks[0], (std::vector<Piece>{{0, 1, 0, 99}}));
}

TEST(Zigzag, SharesRowsAndCausalWorkEvenly) {
  for (const int64_t length : {1000, 1001, 1013, 4096}) {
    for (const int ring_size : {2, 3, 8}) {
      const SequenceLayout layout = make_layout(Layout::zigzag, length, ring_size);
      int64_t fewest = length, least = std::numeric_limits<int64_t>::max(), greatest = 0;
      for (int rank = 0; rank < ring_size; ++rank) {
        fewest = std::min(fewest, layout.rows(rank));
        int64_t pairs = 0;
        for (const Piece& piece : layout.ranks[size_t(rank)]) {
          for (int64_t i = 0; i < piece.row_count; ++i) pairs += piece.position(i) + 1;
        }
        least = std::min(least, pairs);
        greatest = std::max(greatest, pairs);
      }
      EXPECT_LE(layout.max_rows() - fewest, 1);
      EXPECT_LE(greatest - least, 2 * length);  // two rows
    }
  }
}

TEST(Striped, RankHoldsEveryRingSizethPosition) {
  const SequenceLayout layout = make_layout(Layout::striped, 8, 3);
  EXPECT_EQ(layout.ranks[0], (std::vector<Piece>{{0, 3, 0, 3}}));
  EXPECT_EQ(layout.ranks[1], (std::vector<Piece>{{1, 3, 0, 3}}));
  EXPECT_EQ(layout.ranks[2], (std::vector<Piece>{{2, 3, 0, 2}}));
}

TEST(LayoutNames, GoThereAndBack) {
  for (const Layout layout : kLayouts) EXPECT_EQ(layout_named(name_of(layout)), layout);
  EXPECT_STREQ(name_of(Layout::zigzag), "zigzag");
}

TEST(LayoutNames, UnknownIsAUsageErrorThatListsThem) {
  try {
    layout_named("zigzig");
    FAIL();
  } catch (const UsageError& error) {
    EXPECT_NE(std::string(error.what()).find("zigzig"), std::string::npos);
    for (const Layout layout : kLayouts) {
      EXPECT_NE(error.advice.find(name_of(layout)), std::string::npos);
    }
  }
}

TEST(Layouts, RefuseAnEmptySequenceAndAnEmptyRing) {
  for (const Layout layout : kLayouts) {
    EXPECT_THROW(make_layout(layout, 0, 1), Error);
    EXPECT_THROW(make_layout(layout, 1, 0), Error);
  }
}

TEST(MaskFirstVisible, IsTheLaterOfDocumentStartAndWindow) {
  const Mask documents{{0, 3, 10}, 0}, both{{0, 3, 10}, 4};
  const std::vector<int64_t> with_documents{0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 10, 10};
  const std::vector<int64_t> with_window{0, 0, 0, 3, 3, 3, 3, 4, 5, 6, 10, 10};
  for (int64_t i = 0; i < 12; ++i) {
    EXPECT_EQ(documents.first_visible(i), with_documents[size_t(i)]) << i;
    EXPECT_EQ(both.first_visible(i), with_window[size_t(i)]) << i;
  }
  EXPECT_EQ((Mask{{0}, 1}).first_visible(7), 7);  // a window of one: a query sees only itself
}

/// Tries all pairs. `keys_between` counts the positions between two strided keys as keys.
bool any_pair(const Mask& mask, const Piece& queries, const Piece& keys, bool keys_between) {
  for (int64_t i = 0; i < queries.row_count; ++i) {
    const int64_t query = queries.position(i);
    const int64_t step = keys_between ? 1 : keys.stride;
    for (int64_t key = keys.first_position; key <= keys.last_position(); key += step) {
      if (mask.first_visible(query) <= key && key <= query) return true;
    }
  }
  return false;
}

Mask random_mask(const CounterRandom& random, int64_t length) {
  Mask mask;
  const double share = random.uniform(0) * 0.5;
  for (int64_t i = 1; i < length; ++i) {
    if (random.uniform(uint64_t(10 + i)) < share) mask.document_starts.push_back(i);
  }
  if (random.uniform(1) < 0.5) mask.window = 1 + int64_t(random.uniform(2) * double(length));
  return mask;
}

TEST(AnyVisible, EqualsTryingAllPairsOnRandomLayoutsDocumentsAndWindows) {
  int64_t visible = 0, hidden = 0;
  for (uint64_t trial = 0; trial < 300; ++trial) {
    const CounterRandom random(7, trial);
    const int64_t length = 1 + int64_t(random.uniform(3) * 200);
    const int ring_size = 1 + int(random.uniform(4) * 8);
    const Mask mask = random_mask(random, length);
    for (const Layout name : kLayouts) {
      std::vector<Piece> pieces;
      for (const auto& rank : make_layout(name, length, ring_size).ranks) {
        pieces.insert(pieces.end(), rank.begin(), rank.end());
      }
      for (const Piece& queries : pieces) {
        for (const Piece& keys : pieces) {
          const bool answer = any_visible(mask, queries, keys);
          ASSERT_EQ(answer, any_pair(mask, queries, keys, true)) << "trial " << trial;
          ASSERT_TRUE(answer || !any_pair(mask, queries, keys, false)) << "trial " << trial;
          ++(answer ? visible : hidden);
        }
      }
    }
  }
  EXPECT_GT(visible, 1000);
  EXPECT_GT(hidden, 1000);
}

TEST(AnyVisible, OfAnEmptyPieceIsNo) {
  EXPECT_FALSE(any_visible({}, {5, 1, 0, 0}, {0, 1, 0, 5}));
  EXPECT_FALSE(any_visible({}, {5, 1, 0, 5}, {0, 1, 0, 0}));
}

// Against a count of every pair, for pieces of any stride, with documents and windows.
TEST(VisiblePairsTest, AreThePairsThatTheMaskLetsThrough) {
  const std::vector<Mask> masks{{{0}, 0}, {{0, 3, 10, 11, 40}, 0}, {{0}, 5}, {{0, 17, 18, 33}, 9}};
  int64_t seen = 0;
  for (const Layout layout : {Layout::contiguous, Layout::zigzag, Layout::striped}) {
    for (const int64_t length : {1, 13, 50, 200}) {
      for (const int ring_size : {1, 2, 3, 5}) {
        const SequenceLayout whole = make_layout(layout, length, ring_size);
        std::vector<Piece> pieces;
        for (const auto& rank : whole.ranks) pieces.insert(pieces.end(), rank.begin(), rank.end());
        for (const Mask& mask : masks) {
          for (const Piece& queries : pieces) {
            for (const Piece& keys : pieces) {
              int64_t pairs = 0;
              for (int64_t i = 0; i < queries.row_count; ++i) {
                for (int64_t j = 0; j < keys.row_count; ++j) {
                  pairs += mask.first_visible(queries.position(i)) <= keys.position(j) &&
                           keys.position(j) <= queries.position(i);
                }
              }
              ASSERT_EQ(visible_pairs(mask, queries, keys), pairs);
              seen += pairs;
            }
          }
        }
      }
    }
  }
  EXPECT_GT(seen, 100'000);
}

}  // namespace
}  // namespace ringlet
