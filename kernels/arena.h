#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/event.h"
#include "kernels/tensor.h"

namespace ringlet {

/// Does an Arena watch over memory that is in flight? In builds without NDEBUG.
#ifdef NDEBUG
inline constexpr bool kWatchesFlights = false;
#else
inline constexpr bool kWatchesFlights = true;
#endif

/// Tensor memory of one rank as a stack: allocate, mark, rewind. Owns nothing itself: the backend
/// gives it a range of addresses (the dry backend one that is never touched). One thread at a time.
///
/// Every allocation names the region it belongs to ("weights", "checkpoints", "ring inboxes", ...);
/// the arena remembers how the bytes were shared out at the moment of its highest use.
class Arena {
 public:
  static constexpr int64_t kAlignment = 256;

  Arena(std::byte* base, int64_t capacity_bytes) : base_(base), capacity_bytes_(capacity_bytes) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// Memory with unspecified content, aligned to kAlignment. `region` must outlive the arena (a literal).
  /// Throws Error that names the region, the bytes asked and the bytes free when it does not fit.
  Tensor allocate(const char* region, Dtype dtype, Shape shape);

  using Mark = size_t;
  Mark mark() const { return live_.size(); }
  /// Frees everything allocated since the mark. With kWatchesFlights, throws Error that names the region
  /// when some of it is held; then nothing is freed. While an exception is on its way it frees in any case:
  /// the first error counts.
  void rewind(Mark mark);

  /// `tensor` was handed to a Comm or a copy queue: it stays in flight until `event` was waited for.
  /// Whoever hands over memory that may be rewound calls this. Costs nothing without kWatchesFlights.
  void hold(const Tensor& tensor, Event event) {
    if constexpr (kWatchesFlights) add_flight(tensor, event);
  }
  /// `event` was waited for, and so was what its timeline reaches before it. Backend::wait calls this.
  void release(Event event) {
    if constexpr (kWatchesFlights) end_flights(event);
  }

  int64_t used_bytes() const { return used_bytes_; }
  int64_t peak_bytes() const { return peak_bytes_; }
  int64_t capacity_bytes() const { return capacity_bytes_; }
  /// Starts a new high-water mark from what is in use now.
  void reset_peak();

  struct Region {
    const char* name;
    int64_t bytes;
  };
  /// What each region held when the arena was fullest; adds up to peak_bytes().
  const std::vector<Region>& regions_at_peak() const { return at_peak_; }

 private:
  struct Block {
    size_t region;
    int64_t bytes;
  };
  struct Flight {
    const std::byte* begin;
    const std::byte* end;
    Event event;
  };
  void add_flight(const Tensor& tensor, Event event);
  void end_flights(Event event);
  void check_landed(Mark mark) const;

  std::byte* base_;
  int64_t capacity_bytes_;
  int64_t used_bytes_ = 0;
  int64_t peak_bytes_ = 0;
  std::vector<Block> live_;
  std::vector<Region> now_, at_peak_;
  std::vector<Flight> flights_;
};

/// Rewinds to where it began: what is allocated in its scope is scratch. Its end throws as Arena::rewind does.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() noexcept(!kWatchesFlights) { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace ringlet
