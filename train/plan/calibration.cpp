#include "train/plan/calibration.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "kernels/comm/threads.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/plan/prediction.h"
#include "train/quantile.h"
#include "train/world.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;
using Size = std::array<int64_t, 3>;

constexpr int64_t kArenaBytes = int64_t{1} << 36;  // addresses only
/// Lengths of whole steps; then so many queries on so many keys before them.
struct Sizes {
  std::vector<int64_t> lengths, key_rows;
  int64_t query_rows;
};
const Sizes kCpuSizes{{256, 1024, 2048, 4096}, {2048, 8192, 32768}, 2048};
const Sizes kGpuSizes{{1024, 4096, 16384, 65536}, {4096, 16384, 65536, 262144}, 8192};
constexpr int kRepeats = 5;
constexpr double kPatienceSeconds = 15;  // large models are repeated less often
constexpr double kSteady = 0.1;          // Rates::spread above which all is timed again,
constexpr double kMostSeconds = 25;      // until so many are over
constexpr int kVersion = 6;              // of the file of rates

/// The time of every call, by operation and size.
class Stopwatch : public OpObserver {
 public:
  explicit Stopwatch(Backend& device) : clock_(device.make_work_clock()) {}

  void before_call(const OpCall& call) override {
    if (clock_ != nullptr) clock_->begin(name_of(call.op));
  }
  void on_call(const OpCall& call, std::chrono::nanoseconds took) override {
    if (clock_ == nullptr) return add(call, took);
    clock_->end();
    waiting_.push_back(call);
  }
  void on_wait(Event) override {}

  /// Takes in what the device's clock has of the calls up to now. Waits for the device.
  void collect() {
    if (clock_ == nullptr) return;
    const std::vector<WorkClock::Stretch> stretches = clock_->take();
    for (size_t i = 0; i < stretches.size(); ++i) add(waiting_[i], stretches[i].end - stretches[i].begin);
    waiting_.clear();
  }
  void clear() { calls_.clear(); }

  void put_into(Rates& rates) const {
    for (const auto& [key, calls] : calls_) {
      const double work = median(calls.work);
      rates.put(key.first, {key.second, work, work * median(calls.seconds_per_work)});
    }
    rates.spread = spread();
  }

 private:
  struct Calls {
    std::vector<double> work, seconds_per_work;
  };

  /// Sizes count by their time.
  double spread() const {
    double sum = 0, weights = 0;
    for (const auto& [key, calls] : calls_) {
      const double middle = median(calls.seconds_per_work);
      const double weight = middle * std::accumulate(calls.work.begin(), calls.work.end(), 0.0);
      sum += weight * (quantile(calls.seconds_per_work, 0.9) - quantile(calls.seconds_per_work, 0.1)) / (2 * middle);
      weights += weight;
    }
    return weights > 0 ? sum / weights : 0;
  }

  void add(const OpCall& call, std::chrono::nanoseconds took) {
    double work = call.work;
    if (is_attention(call.op)) work *= double(visible_pairs(Mask{}, call.queries, call.keys));
    if (work == 0 || took.count() <= 0) return;
    // Calls of one size may differ in their work: half of the pairs on the diagonal, all of them before it.
    Calls& calls = calls_[{call.op, call.size}];
    calls.work.push_back(work);
    calls.seconds_per_work.push_back(1e-9 * double(took.count()) / work);
  }

  const std::unique_ptr<WorkClock> clock_;  // of a device whose calls come back before they are done
  std::vector<OpCall> waiting_;             // for their times
  std::map<std::pair<Op, Size>, Calls> calls_;
};

/// Queries at the end of long keys, as on a ring with long pieces.
void time_long_attention(Backend& device, const HeadShape& shape, Dtype dtype, int64_t query_rows,
                         int64_t key_rows) {
  const ArenaScope scope(device.arena());
  const auto allocate = [&](Shape size, Dtype of = Dtype::f32) {
    const Tensor tensor = device.arena().allocate("calibration", of, size);
    device.fill(0.01f, tensor);
    return tensor;
  };
  const Tensor visible = device.arena().allocate("calibration", Dtype::i64, {query_rows, 1, 1, 1});
  const std::vector<int64_t> from_first(size_t(query_rows), 0);
  upload<int64_t>(device, from_first, visible);
  const AttentionStep step{shape, {key_rows, 1, 0, query_rows}, {0, 1, 0, key_rows}, visible};
  const Tensor q = allocate({shape.heads, query_rows, shape.head_dim, 1}, dtype);
  const Tensor kv = allocate({2, shape.kv_heads, key_rows, shape.head_dim}, dtype);
  const AttentionState state{allocate(q.shape), allocate({shape.heads, query_rows, 1, 1}),
                             allocate({shape.heads, query_rows, 1, 1})};
  const AttentionGradient gradient{allocate({query_rows, shape.q_width(), 1, 1}, dtype), state.maximum, state.sum};
  const Tensor dq = allocate(q.shape), dkv = allocate(kv.shape), arrived = allocate(kv.shape);
  device.attention_start(state);
  device.attention_forward(step, q, kv, state);
  device.attention_backward(step, q, kv, gradient, dq, Write::set, dkv);
  device.add(arrived, dkv);  // what a ring of one never does
}

/// Bandwidth and latency of messages round a ring of two.
Link time_messages(const Devices& devices) {
  Link link{.name = devices.kind() == DeviceKind::cpu ? "between threads of this machine"
                                                      : "between ranks on the GPUs of this machine"};
  ThreadsOptions options;
  options.ranks = 2;
  options.memory = devices.memory();
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = devices.make(ring.rank(), 2, kArenaBytes, trace);
    const auto seconds_of = [&](int64_t elements, int repeats) {
      const Tensor out = device->arena().allocate("calibration", Dtype::f32, {elements, 1, 1, 1});
      const Tensor in = device->arena().allocate("calibration", Dtype::f32, {elements, 1, 1, 1});
      device->fill(1, out);
      device->fill(1, in);
      std::vector<double> seconds;
      for (int i = 0; i < repeats; ++i) {
        ring.barrier();
        const auto start = std::chrono::steady_clock::now();
        const int peer = 1 - ring.rank();
        const Message send{peer, out}, receive{peer, in};
        device->wait(ring.exchange({&send, 1}, {&receive, 1}, device->record()));
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
      return median(seconds);
    };
    const int64_t elements = int64_t{1} << 22;
    const double latency = seconds_of(1, 101), large = seconds_of(elements, 9);
    if (ring.rank() != 0) return;
    link.latency_seconds = latency;
    link.bytes_per_second = 4.0 * double(elements) / std::max(1e-9, large - latency);
  });
  return link;
}

/// Bytes a second of copies to where memory.offload says, and back, by one rank alone: what a file system keeps in
/// memory is fast, ranks that share a slow disk are slower than this. Kept as that of the folder calibrated last.
double time_copies(const Config& config, const Devices& devices) {
  constexpr int64_t kElements = int64_t{1} << 23;
  std::vector<double> rates;
  run_ranks({.ranks = 1}, [&](Comm&, Trace& trace) {
    const std::unique_ptr<Backend> device = devices.make(0, 1, kArenaBytes, trace);
    const Tensor tensor = device->arena().allocate("calibration", Dtype::f32, {kElements, 1, 1, 1});
    const std::unique_ptr<Offload> offload = devices.make_offload(config, 0, tensor.bytes(), trace);
    device->fill(1, tensor);
    for (int repeat = 0; repeat < 2 * kRepeats; ++repeat) {
      device->synchronize();
      const auto start = std::chrono::steady_clock::now();
      offload->put(tensor, 0, device->record()).wait();
      offload->fetch(0, tensor, device->record()).wait();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      rates.push_back(2.0 * double(tensor.bytes()) / took.count());
    }
  });
  return median(rates);
}

Json to_json(const Rates& rates) {
  Json json{{"version", kVersion},
            {"device", rates.device},
            {"source", rates.source},
            {"foreign_bytes", rates.foreign_bytes},
            {"measured_at", rates.measured_at},
            {"spread", rates.spread},
            {"offload_bytes_per_second", rates.offload_bytes_per_second},
            {"link",
             {{"bytes_per_second", rates.link.bytes_per_second},
              {"latency_seconds", rates.link.latency_seconds},
              {"name", rates.link.name}}}};
  for (int op = 0; op < kOpCount; ++op) {
    for (const Rates::Sample& sample : rates.samples(Op(op))) {
      json["samples"][name_of(Op(op))].push_back({sample.size[0], sample.size[1], sample.size[2], sample.work, sample.seconds});
    }
  }
  return json;
}

/// A number that times can be made of.
double positive(const Json& json) {
  const double value = json;
  if (!(value > 0) || !std::isfinite(value)) throw std::out_of_range("not above 0");
  return value;
}

Rates from_json(const Json& json) {
  Rates rates;
  rates.device = json.at("device");
  rates.source = json.at("source");
  rates.foreign_bytes = positive(json.at("foreign_bytes"));
  rates.measured_at = json.value("measured_at", int64_t{0});
  rates.spread = json.at("spread");
  if (const Json& copies = json.at("offload_bytes_per_second"); copies != 0) {
    rates.offload_bytes_per_second = positive(copies);
  }
  const Json& link = json.at("link");
  rates.link = {positive(link.at("bytes_per_second")), positive(link.at("latency_seconds")), link.at("name")};
  for (int op = 0; op < kOpCount; ++op) {
    const auto samples = json.at("samples").find(name_of(Op(op)));
    if (samples == json.at("samples").end()) continue;
    for (const Json& sample : *samples) {
      rates.put(Op(op), {{sample.at(0), sample.at(1), sample.at(2)}, positive(sample.at(3)), positive(sample.at(4))});
    }
  }
  return rates;
}

/// Operations and foreign memory.
Rates time_operations(const Config& config, const GptConfig& gpt, const Devices& devices) {
  const bool on_cpu = devices.kind() == DeviceKind::cpu;
  const Sizes& sizes = on_cpu ? kCpuSizes : kGpuSizes;
  ThreadsOptions options;
  options.ranks = std::max(1, devices.worker_count() / devices.threads_per_rank());
  options.memory = devices.memory();
  Config one_layer = config;
  one_layer.model.layers = 1;
  one_layer.run.ranks = options.ranks;
  one_layer.run.ring = 1;
  GptConfig layer = gpt;
  layer.layers = 1;
  Rates rates;
  int repeats = kRepeats;  // written by rank 0 between barriers
  rates.device = devices.rates_name(gpt.dtype);
  rates.source = "measured on this machine";
  rates.measured_at = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  run_ranks(options, [&](Comm& world, Trace& trace) {
    const std::unique_ptr<Backend> device = devices.make(world.rank(), world.size(), kArenaBytes, trace);
    const std::unique_ptr<Comm> ring = world.split(world.rank());
    Stopwatch stopwatch(*device);
    ObservedBackend observed(*device, stopwatch);
    const auto start = std::chrono::steady_clock::now();
    // Machines have fast and slow seconds: the repeats of a size stand apart.
    for (int repeat = 0; repeat <= repeats; ++repeat) {
      for (const int64_t length : sizes.lengths) {
        const SequenceLayout layout = make_layout(config.run.layout, length, 1);
        rehearse_step({one_layer, layer}, {observed, *ring, trace}, world, layout, RehearsedWindows{},
                      [](Parameters& parameters) { parameters.initialise(1); });
        stopwatch.collect();  // often: a device's clock tells what is long past less well
      }
      for (const int64_t key_rows : sizes.key_rows) {
        time_long_attention(observed, gpt.heads, gpt.dtype, sizes.query_rows, key_rows);
        stopwatch.collect();
      }
      if (repeat > 0) continue;
      stopwatch.clear();
      world.barrier();
      if (world.rank() == 0) {
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        repeats = std::clamp(int(kPatienceSeconds / took.count()), 1, kRepeats);
      }
      world.barrier();
    }
    world.barrier();  // all arenas are still there
    if (world.rank() == 0) {
      stopwatch.put_into(rates);
      const Arena& arena = device->arena();
      const int64_t bytes_of_rank = arena.peak_bytes() + host_bytes_of_rank(devices.threads_per_rank());
      rates.foreign_bytes =
          on_cpu ? double(resident_bytes()) - double(options.ranks) * double(bytes_of_rank)
                 : double(devices.used_bytes() - devices.bytes_of_ranks(arena.capacity_bytes(), options.ranks));
    }
    world.barrier();
  });
  rates.foreign_bytes = std::max(rates.foreign_bytes, 1.0);
  return rates;
}

}  // namespace

Rates calibrate(const Config& config, const GptConfig& gpt, const Devices& devices) {
  const auto start = std::chrono::steady_clock::now();
  const auto is_early = [&] { return std::chrono::steady_clock::now() - start < std::chrono::duration<double>(kMostSeconds); };
  Rates rates = time_operations(config, gpt, devices);
  // Something else took the cores meanwhile: the steadiest time is kept, with the memory of the first.
  while (rates.spread > kSteady && is_early()) {
    Rates again = time_operations(config, gpt, devices);
    again.foreign_bytes = rates.foreign_bytes;
    if (again.spread < rates.spread) rates = std::move(again);
  }
  rates.link = time_messages(devices);
  if (!config.memory.offload.empty()) rates.offload_bytes_per_second = time_copies(config, devices);
  return rates;
}

std::filesystem::path rates_file(std::string name) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::filesystem::path base = cache != nullptr && *cache != 0 ? std::filesystem::path(cache)
                                     : home != nullptr              ? std::filesystem::path(home) / ".cache"
                                                                    : std::filesystem::temp_directory_path();
  for (char& letter : name) {
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '-';
  }
  return base / "ringlet" / (name + ".json");
}

std::optional<Rates> load_rates(const std::string& device) {
  const std::filesystem::path file = rates_file(device);
  std::ifstream stream(file);
  if (!stream) return {};
  try {
    const Json json = Json::parse(stream);
    if (json.at("version") != kVersion) return {};
    return from_json(json);
  } catch (const std::exception&) {
    throw Error("'" + file.string() + "' does not hold rates", "measure anew: ringlet plan CONFIG --calibrate");
  }
}

void save_rates(const Rates& rates) {
  Rates all;
  try {
    all = load_rates(rates.device).value_or(Rates{});
  } catch (const Error&) {  // damaged: what was measured now takes its place
  }
  for (int op = 0; op < kOpCount; ++op) {
    for (const Rates::Sample& sample : rates.samples(Op(op))) all.put(Op(op), sample);
  }
  all.device = rates.device;
  all.source = rates.source;
  all.measured_at = rates.measured_at;
  all.foreign_bytes = rates.foreign_bytes;
  all.spread = rates.spread;
  all.link = rates.link;
  if (rates.offload_bytes_per_second > 0) all.offload_bytes_per_second = rates.offload_bytes_per_second;
  const std::filesystem::path file = rates_file(rates.device);
  std::error_code failure;
  std::filesystem::create_directories(file.parent_path(), failure);
  const std::filesystem::path temporary = file.string() + fmt::format(".{}", getpid());
  std::ofstream stream(temporary);
  stream << to_json(all).dump(1) << '\n';
  stream.close();
  if (stream) std::filesystem::rename(temporary, file, failure);
  if (!stream || failure) {
    throw Error("'" + file.string() + "' cannot be written",
                "set XDG_CACHE_HOME to a folder that can be");
  }
}

}  // namespace ringlet
