#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/profile/recorder.h"

namespace ringlet {

/// A stretch of time in whole microseconds since the first measured step began: what the trace files say and the tables
/// are computed from.
struct Span {
  int64_t begin_us = 0, end_us = 0;
  int64_t length_us() const { return end_us - begin_us; }
};

struct OperationSpan : Span {
  Trace::Place place;
  OpCall call;
  int64_t used_bytes = 0;  // of the arena, behind it
};

/// One side of an exchange, all its messages, or a collective.
struct TransferSpan : Span {
  Trace::Place place;  // where it was asked for
  Cargo cargo = Cargo::gradient;
  TransferObserver::Direction direction = TransferObserver::Direction::both;
  int64_t bytes = 0;   // sent, or received; of a collective sent
  size_t post = 0;     // both sides of an exchange have the same
};

/// The compute queue stood still.
struct WaitSpan : Span {
  Trace::Place place;      // where it waited
  int64_t transit_us = 0;  // while what it waited for travelled; the rest: it had not begun to
  std::optional<size_t> post;  // what it waited for
};

struct PhaseSpan : Span {
  const char* name = "";
};

struct StepSpan : Span {
  int64_t number = 0;
};

/// The measured steps of one rank.
struct RankRecording {
  int rank = 0, ring = 0, ring_position = 0;
  std::vector<StepSpan> steps;
  std::vector<PhaseSpan> phases;  // they fill the steps
  std::vector<PhaseSpan> loads;   // waits for the loader
  std::vector<OperationSpan> operations;
  std::vector<WaitSpan> waits;
  std::vector<TransferSpan> transfers;
  std::vector<RankRecorder::Post> posts;
  std::vector<RankRecorder::RingMessage> messages;
};

/// What was sent by `from` and arrived at `to`: transfers of their recordings.
struct Arrow {
  int from = 0, to = 0;
  size_t sent = 0, received = 0;
};

struct Recording {
  std::vector<RankRecording> ranks;
  std::vector<Arrow> arrows;
};

/// Host copies: neither compute nor messages between ranks.
inline bool is_host_copy(Op op) { return op == Op::upload || op == Op::read; }

/// What the recorders of a world's ranks have, and the logs. Messages between two ranks match in their order.
Recording make_recording(std::vector<std::unique_ptr<RankRecorder>>& ranks, const TransferLogs& logs, int ring_size);

}  // namespace ringlet
