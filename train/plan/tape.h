#pragma once

#include <string>
#include <vector>

#include "kernels/comm/traffic.h"
#include "kernels/observed_backend.h"
#include "kernels/offload.h"
#include "kernels/trace.h"
#include "model/sequence_layout.h"
#include "train/plan/rates.h"

namespace ringlet {

/// One thing that moves a rank's clock. `operation` counts the messages, collectives or copies of a channel.
struct TapeEntry {
  enum class Kind : uint8_t { compute, exchange, collective, copy, wait };
  Kind kind = Kind::compute;
  uint8_t channel = 0;  // Tape::Channel
  int layer = -1, hop = -1;
  const char* phase = "";
  double seconds = 0;          // compute, copy
  int64_t operation = 0;       // all but compute
  int64_t bytes = 0;           // collective: sent by this rank
  size_t first_message = 0, message_count = 0;  // exchange
};

struct TapeMessage {
  int peer = 0;
  int64_t bytes = 0;
  enum class Direction : uint8_t { out, in } direction = Direction::out;
};

/// When a rank's arena was fullest.
struct PeakMoment {
  const char* phase = "";
  int layer = -1, hop = -1;
  Op op = Op::fill;
  std::string text() const;  // "backward, layer 3, hop 1, attention_backward"
};

/// What one rank does, recorded call by call while it runs dry: how long it computes, what it sends, where it waits.
class Tape : public OpObserver {
 public:
  /// rates absent: times are 0. All must outlive the tape.
  Tape(const Rates* rates, const Mask& mask, const Trace& trace, const Arena& arena)
      : rates_(rates), mask_(mask), trace_(trace), arena_(arena) {}

  void on_call(const OpCall& call, std::chrono::nanoseconds) override;
  void on_wait(Event event) override;
  enum Channel : uint8_t { kRing, kWorld, kOffload, kChannelCount };
  void on_exchange(Channel channel, Event event, std::span<const Message> sends, std::span<const Message> receives);
  void on_collective(Channel channel, Event event, int64_t sent_bytes);
  void on_copy(Event event, int64_t bytes);

  const std::vector<TapeEntry>& entries() const { return entries_; }
  std::span<const TapeMessage> messages(const TapeEntry& entry) const {
    return std::span(messages_).subspan(entry.first_message, entry.message_count);
  }
  const PeakMoment& peak_moment() const { return moment_; }
  double matmul_flops() const { return matmul_flops_; }
  double attention_flops() const { return attention_flops_; }  // of pairs that the mask lets through

 private:
  TapeEntry entry(TapeEntry::Kind kind) const;
  TapeEntry started(TapeEntry::Kind kind, Channel channel, Event event);

  const Rates* rates_;
  const Mask& mask_;
  const Trace& trace_;
  const Arena& arena_;
  std::vector<TapeEntry> entries_;
  std::vector<TapeMessage> messages_;
  std::array<const Timeline*, kChannelCount> timelines_{};
  PeakMoment moment_;
  int64_t peak_bytes_ = 0;
  double matmul_flops_ = 0, attention_flops_ = 0;
};

/// A Comm whose messages are put on a tape.
class TapeComm final : public ForwardingComm {
 public:
  /// Both must outlive this.
  TapeComm(Comm& inner, Tape& tape, Tape::Channel channel)
      : ForwardingComm(inner), tape_(tape), channel_(channel) {}
  Event exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) override;
  Event all_reduce(const Tensor& values, Event after) override;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override;

 private:
  Tape& tape_;
  Tape::Channel channel_;
};

/// An Offload that copies nothing: it counts bytes and puts copies on a tape.
class TapeOffload final : public Offload, private Timeline {
 public:
  explicit TapeOffload(Tape& tape) : tape_(tape) {}
  Event put(const Tensor& from, int64_t, Event) override { return copy(from.bytes()); }
  Event fetch(int64_t, const Tensor& to, Event) override { return copy(to.bytes()); }
  int64_t bytes() const { return bytes_; }  // both ways

 private:
  Event copy(int64_t bytes);
  bool reached(int64_t) const override { return true; }
  void wait(int64_t) override {}
  bool is_of_ranks() const override { return false; }

  Tape& tape_;
  int64_t bytes_ = 0, copies_ = 0;
};

}  // namespace ringlet
