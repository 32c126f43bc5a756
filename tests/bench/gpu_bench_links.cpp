// Where a link stops hiding: one rank of a ring on a GPU of its own, its messages paced to the speed of a link.
// The link's clock starts when the host asks for a message, which may be before the computation in front of it
// is done. Where the link is the slower one the host never runs ahead, so what is exposed is the same.
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <future>
#include <map>

#include "kernels/comm/emulated_link.h"
#include "kernels/comm/threads.h"
#include "tests/bench/gpu_bench_ring.h"

namespace ringlet::bench {
namespace {

constexpr int kRing = 8, kRank = 3;
constexpr double kBar = 5;  // percent
constexpr HeadShape kShape{6, 6, 128};
constexpr const char* kMemory = "memory";  // the link without a limit

/// One rank of a ring of eight whose neighbours are both played by one peer, which computes
/// nothing: it sends and receives as soon as this rank asks. Disconnected, nothing travels.
class LoneRank final : public ForwardingComm {
 public:
  /// boxes: what the peer sends from and receives into, no smaller than any message.
  LoneRank(Comm& world, Tensor from, Tensor to) : ForwardingComm(world), from_(from), to_(to) {}
  int rank() const override { return kRank; }
  int size() const override { return kRing; }
  /// own, peer: ranks 0 and 1 of two, both called by this thread.
  void connect(Comm* own, Comm* peer) { own_ = own, peer_ = peer; }

  Event exchange(std::span<const Message> sends, std::span<const Message> receives,
                 Event after) override {
    if (own_ == nullptr) return {};
    std::vector<Message> out, in, peer_in, peer_out;
    for (const Message& message : sends) {
      out.push_back({1, message.tensor});
      peer_in.push_back({0, like(to_, message.tensor)});
    }
    for (const Message& message : receives) {
      in.push_back({1, message.tensor});
      peer_out.push_back({0, like(from_, message.tensor)});
    }
    peer_->exchange(peer_out, peer_in, {});
    return own_->exchange(out, in, after);
  }

 private:
  static Tensor like(const Tensor& box, const Tensor& tensor) {
    return make_tensor(box.data, tensor.dtype, tensor.shape);
  }

  Tensor from_, to_;
  Comm* own_ = nullptr;
  Comm* peer_ = nullptr;
};

/// What the thread of the peer has ready for that of the rank.
struct Peer {
  Comm* comm = nullptr;
  Trace* trace = nullptr;
  Tensor from, to;
  std::promise<void> done;
};

/// Also when the rank ends by an error.
struct Release {
  Peer& peer;
  ~Release() { peer.done.set_value(); }
};

using TwoTimes = std::array<double, 2>;  // forward, backward, ms

TwoTimes time_passes(RingRank& rank) {
  TwoTimes times;
  for (const size_t pass : {0u, 1u}) {
    const auto start = std::chrono::steady_clock::now();
    if (pass == 0)
      rank.forward();
    else
      rank.backward();
    rank.gpu->synchronize();
    times[pass] = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  return times;
}

struct Measured {
  TwoTimes alone;                           // nothing travels
  std::map<std::string, TwoTimes> by_link;  // by its name
};

/// Both messages of a rank and of its peer over one link.
struct LinkOfTwo {
  LinkOfTwo(const Link& link, Comm& world, Trace& trace, Peer& peer)
      : name(link.name),
        own(std::make_unique<ForwardingComm>(world), link, trace),
        other(std::make_unique<ForwardingComm>(*peer.comm), link, *peer.trace) {}
  std::string name;
  EmulatedLink own, other;
};

void play_peer(const CudaInterface& interface, int64_t message_bytes, Comm& world, Trace& trace, Peer& peer) {
  Gpu gpu(interface, {.arena_bytes = 2 * message_bytes + (int64_t{64} << 20)}, 1, trace);
  peer.comm = &world, peer.trace = &trace;
  peer.from = gpu.random(Dtype::bf16, {message_bytes / 2, 1, 1, 1});
  peer.to = gpu.empty(Dtype::bf16, peer.from.shape);
  gpu->synchronize();
  world.barrier();
  peer.done.get_future().wait();
}

Measured measure_rank(const CudaInterface& interface, const SequenceLayout& layout,
                      const std::vector<Link>& links, Comm& world, Trace& trace, Peer& peer) {
  world.barrier();  // the peer is ready
  const Release release{peer};
  LoneRank ring(world, peer.from, peer.to);
  RingRank rank(interface, kShape, layout, ring, trace);
  rank.fill_with_random_numbers();
  std::vector<std::unique_ptr<LinkOfTwo>> pairs;
  for (const Link& link : links) pairs.push_back(std::make_unique<LinkOfTwo>(link, world, trace, peer));
  const auto time_over = [&](LinkOfTwo* link) {
    ring.connect(link ? &link->own : nullptr, link ? &link->other : nullptr);
    const TwoTimes times = time_passes(rank);
    ring.connect(nullptr, nullptr);
    return times;
  };
  constexpr int kRepeats = 5;
  std::map<std::string, std::array<std::vector<double>, 2>> samples;
  const auto add = [&](const std::string& name, const TwoTimes& times) {
    for (const size_t pass : {0u, 1u}) samples[name][pass].push_back(times[pass]);
  };
  // In turn, the fast ones side by side: a GPU that has waited for a slow link may be faster for a while. The first pass
  // of a round is not counted; it also fills the boxes with numbers.
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    time_over(pairs.front().get());
    add("", time_over(nullptr));
    for (const auto& pair : pairs) add(pair->name, time_over(pair.get()));
  }
  const auto middle = [&](const std::string& name) {
    return TwoTimes{median(samples[name][0]), median(samples[name][1])};
  };
  Measured measured{middle(""), {}};
  for (const Link& link : links) measured.by_link[link.name] = middle(link.name);
  return measured;
}

Measured measure_rows(const CudaInterface& interface, RankMemory& memory, int64_t rows,
                      const std::vector<Link>& links) {
  const SequenceLayout layout = make_layout(Layout::zigzag, kRing * rows, kRing);
  Peer peer;
  Measured measured;
  ThreadsOptions options;
  options.ranks = 2;
  options.timeout = std::chrono::seconds(20);
  options.memory = &memory;
  run_ranks(options, [&](Comm& world, Trace& trace) {
    if (world.rank() == 1)
      return play_peer(interface, 8 * rows * kShape.q_width(), world, trace, peer);
    measured = measure_rank(interface, layout, links, world, trace, peer);
  });
  return measured;
}

struct Point {
  int64_t rows;
  double bubble;
};

/// Tokens a rank from which the bubble stays below the bar, on straight lines between the
/// logarithms; 0: nowhere.
double crossing(const std::vector<Point>& points) {
  for (size_t i = points.size(); i-- > 0;) {
    if (points[i].bubble < kBar) continue;
    if (i + 1 == points.size()) return 0;
    const Point &above = points[i], &below = points[i + 1];
    const double share =
        std::log(above.bubble / kBar) / std::log(above.bubble / std::max(below.bubble, 1e-3));
    return double(above.rows) * std::pow(double(below.rows) / double(above.rows), share);
  }
  return points.empty() ? 0 : double(points.front().rows);
}

/// Keys and values in bf16, and in the backward pass their gradients in f32.
double transfer_ms(const Link& link, int64_t rows, size_t pass) {
  const int64_t elements = 2 * rows * kShape.kv_heads * kShape.head_dim;
  return 1e3 * link.message_seconds(elements * (pass == 0 ? 2 : 6));
}

std::vector<Point> report_link(const Link& link, size_t pass,
                               const std::map<int64_t, Measured>& by_rows, Report& report) {
  std::vector<Point> points;
  const std::string what = link.name + (pass == 0 ? ", forward" : ", backward");
  for (const auto& [rows, measured] : by_rows) {
    const double alone = measured.alone[pass], time = measured.by_link.at(link.name)[pass];
    const double copied = measured.by_link.at(kMemory)[pass];
    const double bubble = std::max(0.0, 100 * (time - alone) / time);
    char hop[140];
    std::snprintf(hop, sizeof hop, "%% bubble, %.1f %% beyond what copies cost; a hop computes %.3f ms, travels %.3f ms",
                  std::max(0.0, 100 * (time - copied) / time), alone / kRing, transfer_ms(link, rows, pass));
    report.add(what + ", " + thousands(rows) + " a rank", time, bubble, hop);
    points.push_back({rows, bubble});
  }
  return points;
}

}  // namespace

void measure_links(const CudaInterface& interface, Extent extent, Report& report) {
  report.begin("A rank of 8 on a GPU of its own, links emulated",
               "6 heads of 128, bf16, zigzag, rank 3; its peer computes nothing and sends and "
               "receives at once; messages are copied on this GPU and count as arrived when a "
               "link of this speed without latency, both ways at once, would have brought them; "
               "bubble: share of the pass that it takes longer than with nothing travelling, "
               "copies on the GPU included (the line `memory`: these alone; between GPUs there are none)");
  const std::vector<Link> links{
      {1e15, 0, kMemory}, {350e9, 0, "350 GB/s"}, {47e9, 0, "47 GB/s"}, {12.5e9, 0, "12.5 GB/s"}};
  std::vector<int64_t> sizes{1024, 2048, 4096, 8192};
  if (extent == Extent::full) sizes.insert(sizes.end(), {16384, 32768});
  const std::unique_ptr<RankMemory> memory = interface.make_rank_memory();
  std::map<int64_t, Measured> by_rows;
  for (const int64_t rows : sizes) by_rows[rows] = measure_rows(interface, *memory, rows, links);
  for (const size_t pass : {0u, 1u}) {
    std::vector<std::pair<std::string, double>> crossings;
    for (const Link& link : links)
      crossings.emplace_back(link.name, crossing(report_link(link, pass, by_rows, report)));
    for (const auto& [link, tokens] : crossings) {
      report.add(link + (pass == 0 ? ", forward" : ", backward") + ", bubble below 5 % from", 0,
                 tokens, tokens > 0 ? "tokens a rank" : "(nowhere)", 0);
    }
  }
}

}  // namespace ringlet::bench
