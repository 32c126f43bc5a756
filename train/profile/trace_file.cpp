#include "train/profile/trace_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>

#include "train/files.h"

namespace ringlet {
namespace {

using Direction = TransferObserver::Direction;

constexpr int kComputeThread = 1, kOutThread = 2, kInThread = 3, kCollectiveThread = 4;
constexpr int kNextLane = 10;  // from one thread to the next of the same kind
constexpr size_t kFlushBytes = 1 << 20;

/// How one kind of cargo is called in a trace.
struct CargoName {
  const char *kernel, *what;
};
CargoName name_of(Cargo cargo) {
  switch (cargo) {
    case Cargo::keys_and_values: return {"SendRecv", "KV"};
    case Cargo::gradient: return {"SendRecv", "dKV"};
    case Cargo::all_reduce: return {"AllReduce", "sums"};
    case Cargo::reduce_scatter: return {"ReduceScatter", "gradients"};
    case Cargo::all_gather: return {"AllGather", "weights"};
    case Cargo::broadcast: return {"Broadcast", "values"};
  }
  return {"?", "?"};
}

int thread_of(Direction direction) {
  return direction == Direction::out ? kOutThread : direction == Direction::in ? kInThread : kCollectiveThread;
}

/// A file of events, written bit by bit.
class EventFile {
 public:
  EventFile(const std::filesystem::path& path, std::string_view head) : file_(path) {
    fmt::format_to(std::back_inserter(text_), "{{{}\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n", head);
  }
  template <class... Arguments>
  void add(fmt::format_string<Arguments...> event, Arguments&&... arguments) {
    if (any_) text_.append(std::string_view(",\n"));
    any_ = true;
    fmt::format_to(std::back_inserter(text_), event, std::forward<Arguments>(arguments)...);
    if (text_.size() >= kFlushBytes) flush();
  }
  int64_t finish() {
    text_.append(std::string_view("\n]}\n"));
    flush();
    return file_.finish().bytes;
  }

 private:
  void flush() {
    file_.write(std::string_view(text_.data(), text_.size()));
    text_.clear();
  }
  OutputFile file_;
  fmt::memory_buffer text_;
  bool any_ = false;
};

/// The events of one rank.
class RankEvents {
 public:
  RankEvents(EventFile& file, const Recording& recording, size_t rank, const std::string& layout)
      : file_(file), recording_(recording), rank_(recording.ranks[rank]), layout_(layout), threads_(lanes()) {}

  void write() {
    name_threads();
    for (const StepSpan& step : rank_.steps) annotate(step, fmt::format("ProfilerStep#{}", step.number));
    // Holistic Trace Analysis leaves the last step out: this one is empty.
    const StepSpan& last = rank_.steps.back();
    annotate(Span{last.end_us, last.end_us}, fmt::format("ProfilerStep#{}", last.number + 1));
    for (const PhaseSpan& phase : rank_.phases) annotate(phase, phase.name);
    for (const PhaseSpan& load : rank_.loads) annotate(load, load.name);
    write_places(&Trace::Place::layer, "layer");
    write_places(&Trace::Place::hop, "hop");
    write_operations();
    write_waits();
    write_transfers();
    write_arrows();
  }

 private:
  /// The thread of each transfer: the first of its kind where nothing else travels at that time.
  std::vector<int> lanes() const {
    std::vector<int> threads;
    std::array<std::vector<int64_t>, 3> free;  // of each kind and lane, from when
    for (const TransferSpan& transfer : rank_.transfers) {
      std::vector<int64_t>& of_kind = free[size_t(transfer.direction)];
      size_t lane = 0;
      while (lane < of_kind.size() && of_kind[lane] > transfer.begin_us) ++lane;
      if (lane == of_kind.size()) of_kind.push_back(0);
      of_kind[lane] = transfer.end_us;
      threads.push_back(thread_of(transfer.direction) + kNextLane * int(lane));
    }
    return threads;
  }

  void name_threads() {
    const int pid = rank_.rank;
    file_.add(R"j({{"ph":"M","name":"process_name","pid":{},"args":{{"name":"rank {} (ring {}, position {}, {})"}}}})j", pid,
              rank_.rank, rank_.ring, rank_.ring_position, layout_);
    file_.add(R"j({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})j", pid, pid);
    std::vector<int> threads{kComputeThread};
    threads.insert(threads.end(), threads_.begin(), threads_.end());
    std::ranges::sort(threads);
    const auto repeated = std::ranges::unique(threads);
    threads.erase(repeated.begin(), repeated.end());
    constexpr std::array<const char*, 5> names{"", "compute", "messages out", "messages in", "collectives"};
    for (const int thread : threads) {
      file_.add(R"j({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":"{}"}}}})j", pid, thread,
                names[size_t(thread % kNextLane)]);
      file_.add(R"j({{"ph":"M","name":"thread_sort_index","pid":{},"tid":{},"args":{{"sort_index":{}}}}})j", pid, thread,
                thread);
    }
  }

  void annotate(const Span& span, std::string_view name) {
    file_.add(R"j({{"ph":"X","cat":"user_annotation","name":"{}","ts":{},"dur":{},"pid":{},"tid":{}}})j", name, span.begin_us,
              span.length_us(), rank_.rank, kComputeThread);
  }

  /// Consecutive operations and waits of one layer, or of one hop in it, are one span.
  void write_places(int Trace::Place::*of, const char* kind) {
    std::optional<Trace::Place> open;
    Span span;
    const auto close = [&] {
      if (open) annotate(span, fmt::format("{} {}", kind, (*open).*of));
      open.reset();
    };
    for_each_call([&](const Span& call, const Trace::Place& place) {
      const bool same = open && open->step == place.step && std::string_view(open->phase) == place.phase &&
                        open->layer == place.layer && (*open).*of == place.*of;
      if (!same) {
        close();
        if (place.*of < 0) return;
        open = place;
        span.begin_us = call.begin_us;
      }
      span.end_us = call.end_us;
    });
    close();
  }

  /// Operations and waits in the order of their times.
  template <class Use>
  void for_each_call(const Use& use) const {
    size_t wait = 0;
    for (const OperationSpan& operation : rank_.operations) {
      for (; wait < rank_.waits.size() && rank_.waits[wait].end_us <= operation.begin_us; ++wait) {
        use(rank_.waits[wait], rank_.waits[wait].place);
      }
      use(operation, operation.place);
    }
    for (; wait < rank_.waits.size(); ++wait) use(rank_.waits[wait], rank_.waits[wait].place);
  }

  void write_operations() {
    int64_t used_bytes = -1;
    for (const OperationSpan& operation : rank_.operations) {
      const OpCall& call = operation.call;
      const bool copies = is_host_copy(call.op);
      const char* name = call.op == Op::upload ? "Memcpy HtoD (upload)"
                         : call.op == Op::read ? "Memcpy DtoH (read)"
                                               : ringlet::name_of(call.op);
      file_.add(R"j({{"ph":"X","cat":"{}","name":"{}","ts":{},"dur":{},"pid":{},"tid":{},"args":{{"stream":{},"layer":{},)j"
                R"j("hop":{},"size":"{} x {} x {}"}}}})j",
                copies ? "gpu_memcpy" : "kernel", name, operation.begin_us, operation.length_us(), rank_.rank,
                kComputeThread, kComputeThread, operation.place.layer, operation.place.hop, call.size[0], call.size[1],
                call.size[2]);
      if (operation.used_bytes == used_bytes) continue;
      used_bytes = operation.used_bytes;
      file_.add(R"j({{"ph":"C","name":"arena","ts":{},"pid":{},"args":{{"bytes in use":{}}}}})j", operation.end_us, rank_.rank,
                used_bytes);
    }
  }

  void write_waits() {
    for (const WaitSpan& wait : rank_.waits) {
      const char* what = wait.post ? name_of(rank_.posts[*wait.post].cargo).what : "messages";
      file_.add(R"j({{"ph":"X","cat":"wait","name":"wait for {}","ts":{},"dur":{},"pid":{},"tid":{},"args":{{)j"
                R"j("in transit us":{}}}}})j",
                what, wait.begin_us, wait.length_us(), rank_.rank, kComputeThread, wait.transit_us);
    }
  }

  void write_transfers() {
    for (size_t i = 0; i < rank_.transfers.size(); ++i) {
      const TransferSpan& transfer = rank_.transfers[i];
      const CargoName name = name_of(transfer.cargo);
      file_.add(R"j({{"ph":"X","cat":"kernel","name":"ncclDevKernel_{} ({})","ts":{},"dur":{},"pid":{},"tid":{},"args":{{)j"
                R"j("stream":{},"bytes":{},"phase":"{}","layer":{},"hop":{}}}}})j",
                name.kernel, name.what, transfer.begin_us, transfer.length_us(), rank_.rank, threads_[i], threads_[i],
                transfer.bytes, transfer.place.phase, transfer.place.layer, transfer.place.hop);
    }
  }

  void write_arrows() {
    for (size_t id = 0; id < recording_.arrows.size(); ++id) {
      const Arrow& arrow = recording_.arrows[id];
      if (arrow.from == rank_.rank) write_arrow_end(id, arrow.sent, 's');
      if (arrow.to == rank_.rank) write_arrow_end(id, arrow.received, 'f');
    }
  }

  /// Within its span, whose end is not a part of it.
  void write_arrow_end(size_t id, size_t index, char kind) {
    const TransferSpan& transfer = rank_.transfers[index];
    const int64_t at = kind == 's' ? transfer.begin_us : std::max(transfer.begin_us, transfer.end_us - 1);
    file_.add(R"j({{"ph":"{}","bp":"e","cat":"ring","name":"{}","id":{},"ts":{},"pid":{},"tid":{}}})j", kind,
              name_of(transfer.cargo).what, id, at, rank_.rank, threads_[index]);
  }

  EventFile& file_;
  const Recording& recording_;
  const RankRecording& rank_;
  const std::string& layout_;
  const std::vector<int> threads_;  // of transfers
};

}  // namespace

int64_t write_traces(const Recording& recording, const std::string& layout, const std::filesystem::path& folder) {
  int64_t largest = 0;
  create_folders(folder / "perfetto");
  EventFile all(folder / "perfetto" / "all_ranks.json", "");
  for (size_t i = 0; i < recording.ranks.size(); ++i) {
    const RankRecording& rank = recording.ranks[i];
    // The blank behind "rank": is how Holistic Trace Analysis finds it.
    const std::string head = fmt::format(
        R"j("schemaVersion": 1, "distributedInfo": {{"rank": {}, "world_size": {}, "ring": {}, "ring_position": {}, )j"
        R"j("layout": "{}"}}, )j",
        i, recording.ranks.size(), rank.ring, rank.ring_position, layout);
    EventFile own(folder / fmt::format("rank_{}.json", i), head);
    RankEvents(own, recording, i, layout).write();
    RankEvents(all, recording, i, layout).write();
    largest = std::max(largest, own.finish());
  }
  return std::max(largest, all.finish());
}

}  // namespace ringlet
