#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/comm/forwarding_comm.h"
#include "kernels/comm/transfer_observer.h"
#include "kernels/trace.h"

namespace ringlet {

/// What messages between ranks cost, one after the other in each direction.
struct Link {
  double bytes_per_second = 0, latency_seconds = 0;
  std::string name;

  double message_seconds(int64_t bytes) const { return latency_seconds + double(bytes) / bytes_per_second; }
  /// Of a collective of `size` ranks, each of which sends so many bytes, in steps round the ring.
  double collective_seconds(int64_t sent_bytes, int size) const {
    return size > 1 ? double(size - 1) * latency_seconds + double(sent_bytes) / bytes_per_second : 0;
  }
};

/// Ranks of one process as if a link of a given speed lay between them: what is sent arrives as always, but counts as
/// arrived only when it would have come over the link. Each rank sends and receives one message at a time; one that is
/// received starts when both ranks have asked for it. A collective takes its time from this rank's own call
/// on, but is never through before all have called; broadcasts and barriers take none. Two of them do not share a link:
/// sums of the world do not slow down the hops of a ring beside them. Nothing but time changes.
class EmulatedLink final : public ForwardingComm {
 public:
  /// trace: of the rank. observer: told when this rank's side of an operation was on the link, by whoever first asks
  /// whether it is through; may be absent. Both must outlive this.
  EmulatedLink(std::unique_ptr<Comm> inner, Link link, Trace& trace, TransferObserver* observer = nullptr)
      : ForwardingComm(*inner), timeline_(std::move(link), trace, observer), owned_(std::move(inner)) {}

  Event exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) override;
  Event all_reduce(const Tensor& values, Event after) override;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override;

 private:
  using Clock = std::chrono::steady_clock;

  struct Transfer {
    Event inner, event;
    bool is_collective = false;
    double asked_at = 0;
    std::vector<double> peers_asked_at;  // when the other side sent, from its own message
    double out_seconds = 0, in_seconds = 0;
  };

  class Arrivals : public Timeline {
   public:
    Arrivals(Link link, Trace& trace, TransferObserver* observer)
        : link_(std::move(link)), trace_(trace), observer_(observer) {}
    bool reached(int64_t value) const override;
    void wait(int64_t value) override;
    Event add(std::unique_ptr<Transfer> transfer);
    const Link& link() const { return link_; }

   private:
    /// The next transfer is through in memory: when is it through on the link?
    void arrive() const;
    void tell(const Transfer& transfer) const;

    Link link_;
    Trace& trace_;
    TransferObserver* const observer_;
    mutable std::mutex mutex_;
    mutable std::deque<std::unique_ptr<Transfer>> under_way_;
    mutable int64_t arrived_ = 0, posted_ = 0;
    mutable double out_free_ = 0, in_free_ = 0, through_at_ = 0;  // through_at_: of `arrived_`
    mutable double prompt_in_free_ = 0, prompt_at_ = 0;  // as these, had the peers asked when this rank did
  };

  Event start_collective(Event inner, int64_t sent_bytes, double asked_at);
  static double now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

  Arrivals timeline_;
  std::unique_ptr<Comm> owned_;  // goes first: its messages in flight are in the memory of timeline_
};

}  // namespace ringlet
