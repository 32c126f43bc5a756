// How fast a GPU does the operations of a Backend: attention, attention on a ring and its error, matrix
// products, the rest.
//   gpu_bench OUT_FOLDER [--quick]
// A table on stdout; gpu_bench.json and gpu_bench.md in the folder. About a minute; --quick leaves out the
// long sequences.
#include "tests/bench/gpu_bench.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>

#include "kernels/random.h"
#include "tests/support/module_under_test.h"

namespace ringlet::bench {
namespace {

constexpr int64_t kPoolSize = (int64_t{1} << 22) + 8;  // not a power of two: rows do not repeat at once

std::string line_of(const Figure& figure) {
  char text[200];
  if (figure.ms > 0) {
    std::snprintf(text, sizeof text, "%-58s %10.3f ms %10.*f %s", figure.name.c_str(), figure.ms,
                  figure.digits, figure.value, figure.unit.c_str());
  } else {
    std::snprintf(text, sizeof text, "%-58s %13s %10.*f %s", figure.name.c_str(), "", figure.digits,
                  figure.value, figure.unit.c_str());
  }
  return text;
}

}  // namespace

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

void Report::begin(const std::string& group, const std::string& convention) {
  groups_.push_back({group, convention});
  std::printf("\n%s (%s)\n", group.c_str(), convention.c_str());
}

void Report::add(const std::string& name, double ms, double value, const std::string& unit, int digits) {
  figures_.push_back({groups_.back().name, name, ms, value, unit, digits});
  std::printf("  %s\n", line_of(figures_.back()).c_str());
  std::fflush(stdout);
}

void Report::skip(const std::string& name, const std::string& cause) {
  skipped_.push_back(name + ": " + cause);
  std::printf("  %-58s not measured: %s\n", name.c_str(), cause.c_str());
  std::fflush(stdout);
}

void Report::write(const std::string& folder, const CudaDevice& device) const {
  nlohmann::json json{{"device", device.name},
                      {"compute_capability", device.compute_capability},
                      {"multiprocessors", device.multiprocessor_count},
                      {"figures", nlohmann::json::array()}};
  std::ofstream markdown(folder + "/gpu_bench.md");
  markdown << "# Operations on one " << device.name << "\n";
  for (const Group& group : groups_) {
    markdown << "\n## " << group.name << "\n\n" << group.convention << ".\n\n| | ms | |\n|---|---:|---:|\n";
    for (const Figure& figure : figures_) {
      if (figure.group != group.name) continue;
      char numbers[100];
      if (figure.ms > 0) {
        std::snprintf(numbers, sizeof numbers, "%.3f | %.*f", figure.ms, figure.digits, figure.value);
      } else {
        std::snprintf(numbers, sizeof numbers, "| %.*f", figure.digits, figure.value);
      }
      markdown << "| " << figure.name << " | " << numbers << ' ' << figure.unit << " |\n";
      json["figures"].push_back({{"group", figure.group},
                                 {"name", figure.name},
                                 {"ms", figure.ms},
                                 {"value", figure.value},
                                 {"unit", figure.unit}});
    }
  }
  for (const std::string& skipped : skipped_) markdown << "\nNot measured: " << skipped << "\n";
  json["not_measured"] = skipped_;
  std::ofstream(folder + "/gpu_bench.json") << json.dump(1) << '\n';
}

namespace {

/// Sums of uniform numbers: near enough to normal ones, and quickly made; once for all GPUs and ranks.
const std::vector<float>& pool() {
  static const std::vector<float> values = [] {
    const CounterRandom random(1, hash_name("gpu bench"));
    std::vector<float> numbers(kPoolSize);
    for (int64_t i = 0; i < kPoolSize; ++i) {
      const uint64_t bits = random.bits(i);
      double sum = 0;
      for (int part = 0; part < 4; ++part) sum += double((bits >> (16 * part)) & 0xffff) / 65536 - 0.5;
      numbers[i] = float(sum * 1.732);
    }
    return numbers;
  }();
  return values;
}

}  // namespace

Gpu::Gpu(const CudaInterface& interface, CudaAttention attention, int64_t arena_bytes, CudaTuning tuning)
    : Gpu(interface, {.arena_bytes = arena_bytes, .attention = attention, .tuning = tuning}, 0, own_trace_) {}

Gpu::Gpu(const CudaInterface& interface, const CudaBackendOptions& options, int rank, Trace& trace)
    : device_(interface.make_backend(options, trace)), next_(rank * int64_t{500'000}) {
  std::vector<Bf16> rounded(kPoolSize);
  std::ranges::transform(pool(), rounded.begin(), to_bf16);
  pool_f32_ = empty(Dtype::f32, {kPoolSize, 1, 1, 1});
  pool_bf16_ = empty(Dtype::bf16, {kPoolSize, 1, 1, 1});
  upload<float>(*device_, pool(), pool_f32_);
  upload<Bf16>(*device_, rounded, pool_bf16_);
}

Tensor Gpu::random(Dtype dtype, Shape shape, double scale) {
  const Tensor tensor = empty(dtype, shape);
  if (scale != 1) {  // small tensors only: by way of the host
    CHECK(dtype == Dtype::bf16, "scaled random numbers in ", name_of(dtype));
    const CounterRandom random(2, uint64_t(next_ += tensor.size()));
    std::vector<Bf16> values(tensor.size());
    for (int64_t i = 0; i < tensor.size(); ++i) {
      values[i] = to_bf16(float(scale * 3.46 * (double(random.bits(i) >> 40) * 0x1p-24 - 0.5)));
    }
    upload<Bf16>(*device_, values, tensor);
    return tensor;
  }
  const Tensor& pool = dtype == Dtype::bf16 ? pool_bf16_ : pool_f32_;
  const Tensor flat = tensor.reshaped({tensor.size(), 1, 1, 1});
  for (int64_t done = 0; done < flat.rows();) {
    const int64_t from = next_ % kPoolSize, count = std::min(flat.rows() - done, kPoolSize - from);
    device_->copy(pool.slice(from, count), flat.slice(done, count));
    done += count, next_ += count;
  }
  next_ += 1208;  // the next tensor is not this one once more; a multiple of 8 keeps copies aligned
  return tensor;
}

Tensor Gpu::zeros(Shape shape) {
  const Tensor tensor = empty(Dtype::f32, shape);
  device_->fill(0, tensor);
  return tensor;
}

Tensor Gpu::integers(int64_t count, int64_t below) {
  const CounterRandom random(3, hash_name("gpu bench integers"));
  std::vector<int32_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = int32_t(random.bits(i) % uint64_t(below));
  const Tensor tensor = empty(Dtype::i32, {count, 1, 1, 1});
  upload<int32_t>(*device_, values, tensor);
  return tensor;
}

double Gpu::time(const std::function<void()>& body, double budget_ms) {
  using Clock = std::chrono::steady_clock;
  const auto run = [&](int calls) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) body();
    device_->synchronize();
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count() / calls;
  };
  run(1);
  const double estimate = std::max(run(2), 1e-3);
  const int calls = int(std::clamp(1.5 / estimate, 1.0, 100.0));
  const int batches = int(std::clamp(budget_ms / (estimate * calls), 3.0, 30.0));
  std::vector<double> times;
  for (int i = 0; i < batches; ++i) times.push_back(run(calls));
  return median(times);
}

namespace {

constexpr std::array<std::string_view, 6> kParts{"products", "elements", "attention", "ring", "errors", "links"};

/// chosen: names of parts; none: all.
int run(const std::string& folder, Extent extent, const std::vector<std::string>& chosen) {
  const CudaModule module = test::module_under_test();
  std::string trouble = module.trouble;
  CudaMachine machine;
  if (module.interface != nullptr) machine = module.interface->examine();
  if (trouble.empty()) trouble = machine.trouble;
  if (!trouble.empty()) {
    std::fprintf(stderr, "gpu_bench: no CUDA device: %s\n", trouble.c_str());
    return 1;
  }
  const CudaDevice& device = machine.devices.front();
  std::filesystem::create_directories(folder);
  std::printf("%s, %d multiprocessors\n", device.name.c_str(), device.multiprocessor_count);
  Report report;
  int failures = 0;
  // One part that fails does not take the figures of the others with it.
  const auto part = [&](const char* name, const std::function<void()>& body) {
    if (!chosen.empty() && std::ranges::find(chosen, name) == chosen.end()) return;
    try {
      body();
    } catch (const std::exception& error) {
      ++failures;
      report.skip(name, error.what());
    }
    report.write(folder, device);
  };
  part("products", [&] {
    Gpu gpu(*module.interface, CudaAttention::automatic, int64_t{8} << 30);
    Gpu fastest(*module.interface, CudaAttention::automatic, int64_t{4} << 30, CudaTuning::fastest);
    measure_matmul(gpu, fastest, extent, report);
  });
  part("elements", [&] {
    Gpu gpu(*module.interface, CudaAttention::automatic, int64_t{8} << 30);
    measure_elements(gpu, report);
  });
  part("attention", [&] { measure_attention(*module.interface, device.compute_capability, extent, report); });
  part("ring", [&] { measure_ring(*module.interface, extent, report); });
  part("errors", [&] { measure_ring_error(*module.interface, report); });
  part("links", [&] { measure_links(*module.interface, extent, report); });
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace ringlet::bench

int main(int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') {
    std::fprintf(stderr, "usage: gpu_bench OUT_FOLDER [--quick] [products|elements|attention|ring|errors|links ...]\n");
    return 2;
  }
  const bool quick = argc > 2 && std::strcmp(argv[2], "--quick") == 0;
  const std::vector<std::string> parts(argv + (quick ? 3 : 2), argv + argc);
  for (const std::string& part : parts) {
    if (std::ranges::find(ringlet::bench::kParts, part) != ringlet::bench::kParts.end()) continue;
    std::fprintf(stderr, "gpu_bench: there is no part '%s'\n", part.c_str());
    return 2;
  }
  return ringlet::bench::run(argv[1], quick ? ringlet::bench::Extent::quick : ringlet::bench::Extent::full, parts);
}
