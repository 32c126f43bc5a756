#pragma once

#include <cstdint>
#include <memory_resource>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"

namespace ringlet {

enum class Layout : uint8_t { contiguous, zigzag, striped };

const char* name_of(Layout layout);
/// Throws UsageError that lists the names.
Layout layout_named(std::string_view name);

/// Which global positions each rank of a ring holds. A plain table: piece p of rank r stands in ranks[r][p].
/// Any length >= 1, any ring size >= 1; a rank may hold no rows, a piece is never empty.
struct SequenceLayout {
  int64_t length = 0;  // T, global
  std::vector<std::vector<Piece>> ranks;
  /// Not 0: positions rise piece by piece and rank by rank, and pieces begin at multiples of `tile`. Whatever is
  /// computed tile by tile, and in one order over the tiles, is then bit-equal on any ring. 0: no such promise.
  int64_t tile = 0;

  int ring_size() const { return int(ranks.size()); }
  int64_t rows(int rank) const;
  int64_t max_rows() const;
  int most_pieces() const;  // of any rank
  /// The rank that holds a position.
  int rank_of(int64_t position) const;
  bool reproducible() const { return tile > 0; }
};

/// contiguous: rank r holds chunk r, as two pieces, so that one can travel while the other is in use. Reproducible,
/// with tiles of 64.
/// zigzag: 2R chunks, rank r holds chunks r and 2R - 1 - r: equal work under a causal mask (arXiv:2310.03294).
/// striped: rank r holds positions r, r + R, ... (arXiv:2311.09431).
/// pieces: on a ring of more than one, pieces are cut further until a rank holds about so many, as long as its rows
/// allow it: less travels that nobody sees, for a message more each. 0: what the layout needs.
SequenceLayout make_layout(Layout layout, int64_t length, int ring_size, int pieces = 0);

/// The same rows in as few pieces as can be: those joined that follow each other without a gap.
std::pmr::vector<Piece> joined(std::span<const Piece> pieces,
                              std::pmr::memory_resource* memory = std::pmr::get_default_resource());

/// Which positions a query may see: from first_visible(i) to i. Documents and a sliding window are the same fact.
struct Mask {
  std::vector<int64_t> document_starts{0};  // ascending, begins with 0; {0}: one document, plain causal
  int64_t window = 0;                       // a query sees at most this many positions, itself included; 0: all

  int64_t first_visible(int64_t position) const;
};

/// Does any query of the first piece see any key of the second? Exact for stride 1; for strided keys it may say
/// yes where only a position between two keys is visible. All ranks compute the same answer.
bool any_visible(const Mask& mask, const Piece& queries, const Piece& keys);

/// The pieces of `queries`, ascending, that see `keys`. Those that come after all of these keys and see all of them become
/// one run, since one large call is faster than two: its positions count on from the first piece's, none later than the
/// real one, all after the keys, so that the same pairs are visible.
std::pmr::vector<Piece> query_runs(const Mask& mask, std::span<const Piece> queries, const Piece& keys,
                                  std::pmr::memory_resource* memory = std::pmr::get_default_resource());

/// How many pairs of a query and a key are visible: the work of attention. Exact; O(log rows) for each document that
/// both pieces reach into.
int64_t visible_pairs(const Mask& mask, const Piece& queries, const Piece& keys);

}  // namespace ringlet
