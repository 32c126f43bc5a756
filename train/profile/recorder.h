#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "kernels/comm/traffic.h"
#include "kernels/comm/transfer_observer.h"
#include "kernels/observed_backend.h"
#include "kernels/trace.h"

namespace ringlet {

/// What an operation of a Comm carries. On the ring the first exchange of a hop after which another one comes carries keys
/// and values (RingPass::take_kv); all others carry their gradients.
enum class Cargo : uint8_t { keys_and_values, gradient, all_reduce, reduce_scatter, all_gather, broadcast };
inline bool on_ring(Cargo cargo) { return cargo <= Cargo::gradient; }

/// What one rank did, call by call, with the time of each: the measured sister of Tape (train/plan/tape.h). Filled by the
/// rank's own thread, without a lock; strings are literals. Times are of the steady clock, in ns.
class RankRecorder final : public OpObserver {
 public:
  struct Operation {
    Trace::Place place;
    int64_t begin_ns = 0, end_ns = 0;
    OpCall call;
    int64_t used_bytes = 0;  // of the arena, behind the call
  };
  struct Wait {  // the compute queue stood still until `event`
    Trace::Place place;
    int64_t begin_ns = 0, end_ns = 0;
    Event event;
    size_t next_operation = 0;  // the first one behind it
  };
  struct Post {  // asked of a Comm
    Trace::Place place;
    Cargo cargo = Cargo::gradient;
    Event event;
    int64_t sent_bytes = 0;
    size_t first_message = 0, message_count = 0;  // exchanges
  };
  struct RingMessage {
    int peer = 0;  // a rank of the ring
    int64_t bytes = 0;
    TransferObserver::Direction direction = TransferObserver::Direction::out;
  };
  struct Phase {
    const char* name = "";
    int64_t begin_ns = 0;
  };
  struct Step {
    int64_t number = 0, begin_ns = 0, end_ns = 0;
  };

  /// clock: of a device whose calls come back before they are done; else absent. All must outlive the last step.
  RankRecorder(const Trace& trace, Arena& arena, WorkClock* clock = nullptr)
      : trace_(trace), arena_(arena), clock_(clock) {}

  /// With a clock both wait for the device.
  void begin_step(int64_t number);
  void end_step();
  /// Forgets what was recorded, and has room for `times` as much.
  void restart(int64_t times);

  void before_call(const OpCall& call) override;
  void on_call(const OpCall& call, std::chrono::nanoseconds took) override;
  void on_wait(Event event) override;
  void on_exchange(Event event, int ring_size, std::span<const Message> sends, std::span<const Message> receives);
  void on_collective(Cargo cargo, Event event, int64_t sent_bytes);

  std::vector<Operation> operations;
  std::vector<Wait> waits;
  std::vector<Post> posts;
  std::vector<RingMessage> messages;
  std::vector<Phase> phases;  // each lasts until the next one, or the end of its step
  std::vector<Step> steps;

 private:
  Trace::Place enter_place(int64_t begin_ns);
  void put_device_times();

  const Trace& trace_;
  Arena& arena_;
  WorkClock* const clock_;
  struct {
    size_t operation = 0, wait = 0, phase = 0;
  } first_of_step_;
  const char* phase_ = nullptr;
  int64_t last_end_ns_ = 0;
  std::chrono::nanoseconds exposed_{0};
  Trace::Place hop_;  // where the last exchange was posted
};

/// A Comm whose operations are recorded.
class RecordingComm final : public ForwardingComm {
 public:
  /// Both must outlive this.
  RecordingComm(Comm& inner, RankRecorder& recorder) : ForwardingComm(inner), recorder_(recorder) {}
  Event exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) override;
  Event all_reduce(const Tensor& values, Event after) override;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override;
  Event broadcast(const Tensor& values, int root, Event after) override;

 private:
  RankRecorder& recorder_;
};

/// When messages travelled, as one mover of them tells.
class TransferLog final : public TransferObserver {
 public:
  struct Transfer {
    Event event;
    Direction direction = Direction::both;
    int64_t begin_ns = 0, end_ns = 0;
  };
  void on_transfer(Event event, Direction direction, Time begin, Time end) override;
  std::vector<Transfer> transfers;
};

/// The logs of all movers of a world.
class TransferLogs {
 public:
  TransferLog& add();
  /// Forgets everything, and has room for `times` as much. Nothing travels meanwhile.
  void restart(int64_t times);
  const std::deque<TransferLog>& all() const { return logs_; }

 private:
  std::mutex mutex_;  // of logs_ while they are added
  std::deque<TransferLog> logs_;
};

}  // namespace ringlet
