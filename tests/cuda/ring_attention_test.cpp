// Attention in many steps: the pieces that ranks of a ring have.
#include <algorithm>

#include "tests/cuda/attention_bench.h"

namespace ringlet::test {
namespace {

/// Documents and windows over a ring of ranks: each rank's queries meet the pieces of all ranks, its own
/// first and then those that come round, or from the last one down, or up.
class DeviceRingTest : public DeviceAttentionTest {
 protected:
  void check_ranks(const HeadShape& shape, const std::vector<std::vector<Piece>>& ranks) {
    AttentionCase c{shape, {}, {}};
    c.first_visible = [](int64_t p) { return p < 70 ? 0 : std::max<int64_t>(70, p - 160); };
    std::vector<Order> pieces_of_rank;
    for (const std::vector<Piece>& rank : ranks) {
      pieces_of_rank.emplace_back();
      for (const Piece& piece : rank) {
        pieces_of_rank.back().push_back(c.keys.size());
        c.keys.push_back(piece);
      }
    }
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      SCOPED_TRACE(testing::Message() << "rank " << rank << " of " << ranks.size());
      c.queries = ranks[rank];
      Order ring;
      for (size_t hop = 0; hop < ranks.size(); ++hop) {
        const Order& visitors = pieces_of_rank[(rank + ranks.size() - hop) % ranks.size()];
        ring.insert(ring.end(), visitors.begin(), visitors.end());
      }
      std::vector<Order> orders = both_ways(c);
      orders.push_back(ring);
      check(c, orders);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, DeviceRingTest, testing::ValuesIn(every_attention()), setting_name);

TEST_P(DeviceRingTest, StripedPieces) {
  for_each_head_dim([&](const HeadShape& shape) {
    for (const int64_t ring : {2, 3}) {
      std::vector<std::vector<Piece>> ranks;
      for (int64_t rank = 0; rank < ring; ++rank) {
        ranks.push_back({{rank, ring, 0, (257 - rank + ring - 1) / ring}});
      }
      check_ranks(shape, ranks);
    }
  });
}

TEST_P(DeviceRingTest, ZigzagPieces) {
  for_each_head_dim([&](const HeadShape& shape) {
    const std::vector<Piece> chunks = pieces_of({43, 43, 64, 42, 41, 130});
    std::vector<std::vector<Piece>> ranks;
    for (size_t rank = 0; rank < 3; ++rank) {
      ranks.push_back({chunks[rank], chunks[5 - rank]});
      ranks.back()[0].first_row = 0;
      ranks.back()[1].first_row = chunks[rank].row_count;
    }
    check_ranks(shape, ranks);
  });
}

// What is carried from step to step is f32: eight steps lose hardly more than one.
TEST_P(DeviceRingTest, StepsLoseNothing) {
  for_each_head_dim([&](const HeadShape& shape) {
    AttentionCase c{shape, {{512, 1, 0, 96}}, pieces_of({512})};
    c.dtype = dtype();
    const Doubles expected = attention_reference(c.reference_input()).output;
    const auto error = [&](const Order& order) {
      const AttentionLayer layer = put_layer(c);
      forward(c, layer, order);
      const double found = error_of(normalised(c, layer), expected);
      next_case();
      return found;
    };
    const double one = error({0});
    EXPECT_LE(one, output_tolerance());
    c.keys = pieces_of({64, 64, 64, 64, 64, 64, 64, 64});
    for (const Order& order :
         {Order{7, 6, 5, 4, 3, 2, 1, 0}, {0, 1, 2, 3, 4, 5, 6, 7}, {3, 2, 1, 0, 7, 6, 5, 4}}) {
      EXPECT_LE(error(order), 1.2 * one + 1e-5);
    }
  });
}

}  // namespace
}  // namespace ringlet::test
