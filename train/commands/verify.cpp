#include "train/commands/verify.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/corpus.h"
#include "kernels/check.h"
#include "train/console.h"
#include "train/machine.h"
#include "train/stages.h"
#include "train/verify/verify_config.h"
#include "train/world.h"

namespace ringlet {
namespace {

constexpr int64_t kMostRanks = 64;
constexpr double kDenseBytes = 512.0 * 1024 * 1024;  // of the dense model's T x T weights
constexpr size_t kMostFailures = 12;                  // that are printed one by one
constexpr double kOwnSizeSeconds = 60, kQuickOwnSizeSeconds = 2;
constexpr double kOwnSizeMemory = 0.5;  // of the machine's

/// The columns of the table: what is compared, by kind.
struct Column {
  const char* title;
  std::vector<std::string> quantities;
};
const std::vector<Column> kColumns{
    {"loss", {"loss", "evaluation loss", "train loss", "mean evaluation loss"}},
    {"output, LSE", {"attention output", "LSE"}},
    {"dQ dK dV", {"dQ", "dK", "dV"}},
    {"gradients", {"gradient", "input gradient", "gradient norm"}},
    {"next weights", {"next weights"}},
};

struct Row {
  int64_t cases = 0, failed = 0;
  std::map<std::string, double> errors;  // worst, by quantity
  std::optional<Deviation> worst;
};

/// What was seen so far: the worst of each layout and world, the cases that failed, everything as JSON.
class Findings {
 public:
  void add(const VerifyCase& done) {
    Row& row = rows_[{int(done.setup.layout), done.setup.rings, done.setup.ring_size}];
    ++row.cases;
    ++cases_;
    if (!done.passed()) {
      ++row.failed;
      ++failed_;
      if (failures_.size() < kMostFailures) failures_.push_back(failure_line(done));
    }
    for (const Deviation& deviation : done.deviations) {
      double& error = row.errors.try_emplace(deviation.quantity, 0).first->second;
      if (!std::isnan(error) && !(deviation.error <= error)) error = deviation.error;
    }
    Deviation worst = done.worst();
    worst.where = done.name() + (worst.where.empty() ? "" : ", " + worst.where);
    if (!row.worst || worse(worst, *row.worst)) row.worst = worst;
    if (!worst_ || worse(worst, *worst_)) worst_ = worst;
    json_.push_back(to_json(done));
  }

  int64_t cases() const { return cases_; }
  int64_t failed() const { return failed_; }
  const std::vector<std::string>& failures() const { return failures_; }
  const Deviation& worst() const { return *worst_; }
  const nlohmann::ordered_json& json() const { return json_; }

  std::string table() const {
    std::vector<std::vector<std::string>> lines{{"layout", "ranks", "cases"}};
    for (const Column& column : kColumns) lines[0].push_back(column.title);
    lines[0].insert(lines[0].end(), {"of allowed", "at worst", ""});
    for (const auto& [key, row] : rows_) {
      const auto& [layout, rings, ring_size] = key;
      std::vector<std::string> line{name_of(Layout(layout)),
                                    rings > 1 ? fmt::format("{} x {}", rings, ring_size)
                                              : std::to_string(ring_size),
                                    std::to_string(row.cases)};
      for (const Column& column : kColumns) line.push_back(worst_of(row, column));
      line.push_back(fmt::format("{:.0f} %", 100 * row.worst->share()));
      line.push_back(row.worst->quantity);
      line.push_back(row.failed == 0 ? "PASS" : fmt::format("FAIL {}", row.failed));
      lines.push_back(line);
    }
    return format_table(lines);
  }

 private:
  static std::string worst_of(const Row& row, const Column& column) {
    double worst = -1;
    for (const std::string& quantity : column.quantities) {
      const auto found = row.errors.find(quantity);
      if (found == row.errors.end() || std::isnan(worst)) continue;
      if (!(found->second <= worst)) worst = found->second;
    }
    return worst < 0 ? "-" : fmt::format("{:.1e}", worst);
  }

  static nlohmann::ordered_json to_json(const VerifyCase& done) {
    nlohmann::ordered_json json{{"layout", name_of(done.setup.layout)},
                                {"ring", done.setup.ring_size},
                                {"rings", done.setup.rings},
                                {"pieces", done.setup.pieces},
                                {"seq_len", done.length},
                                {"model", done.model},
                                {"mask", name_of(done.mask)},
                                {"recompute", name_of(done.setup.settings.recompute)},
                                {"against", name_of(done.against)},
                                {"passed", done.passed()}};
    for (const Deviation& d : done.deviations) {
      nlohmann::ordered_json error = d.error;
      if (!std::isfinite(d.error)) error = nullptr;
      json["compared"].push_back(
          {{"quantity", d.quantity}, {"error", error}, {"tolerance", d.tolerance}, {"where", d.where}});
    }
    return json;
  }

  std::map<std::tuple<int, int, int>, Row> rows_;
  int64_t cases_ = 0, failed_ = 0;
  std::vector<std::string> failures_;
  std::optional<Deviation> worst_;
  nlohmann::ordered_json json_ = nlohmann::ordered_json::array();
};

Config config_of(const VerifyOptions& options) {
  Console console;
  const auto say = [&](const std::string& line) { console.say(line); };
  if (!options.config.empty())
    return one_stage(load_config(options.config, options.overrides), options.stage, say);
  return parse_config("", "the default config", options.overrides);
}

double dense_bytes(const GptConfig& gpt, int64_t length) {
  return 8 * double(gpt.layers * gpt.heads.heads) * double(length) * double(length);
}

VerifyMatrix matrix_of(const VerifyOptions& options, const Config& config) {
  const Dtype dtype = config.gpt(1).dtype;
  VerifyMatrix matrix = options.extent == VerifyExtent::quick ? quick_matrix(dtype) : full_matrix(dtype);
  if (!options.config.empty()) restrict_to(config, matrix);
  if (!options.ranks.empty()) {
    matrix.worlds.clear();
    for (const int64_t ranks : options.ranks) {
      if (ranks < 1 || ranks > kMostRanks) {
        throw UsageError(fmt::format("a ring of {} ranks cannot be verified", ranks),
                         fmt::format("choose 1 to {}, as in --ranks 1,2,4", kMostRanks));
      }
      matrix.worlds.push_back({.ring_size = int(ranks), .pieces = ranks > 1 ? int(config.run.pieces) : 0});
    }
  }
  if (!options.lengths.empty()) matrix.lengths = options.lengths;
  for (const int64_t length : matrix.lengths) {
    if (length < 1 || length > (int64_t(1) << 24)) {
      throw UsageError(fmt::format("a length of {} tokens cannot be verified", length),
                       fmt::format("choose 1 to {}, as in --lengths 61,1000", int64_t(1) << 24));
    }
  }
  return matrix;
}

/// Lengths at which the dense model would need more memory than it may: their cases are sampled.
std::vector<int64_t> take_long_lengths(VerifyMatrix& matrix) {
  std::vector<int64_t> too_long;
  std::erase_if(matrix.lengths, [&](int64_t length) {
    const bool dense = std::ranges::all_of(matrix.models, [&](const VerifyMatrix::Model& model) {
      return dense_bytes(model.gpt, length) <= kDenseBytes;
    });
    if (!dense) too_long.push_back(length);
    return !dense;
  });
  return too_long;
}

std::string own_size_line(const OwnSizeCheck& own, const Config& config) {
  const std::string what = fmt::format("own size, T={}: ", config.run.seq_len);
  if (!own.result) {
    return what + fmt::format("left out, it would take about {} and {}; run.verify = N checks random rows of "
                              "every N-th step",
                              human_seconds(own.estimated_seconds), human_bytes(own.estimated_bytes));
  }
  return what + (own.result->against == VerifyAgainst::one_rank
                     ? "everything compared with one rank, and random rows recomputed in double"
                     : "random rows recomputed in double (one rank would take too long)");
}

int64_t vocabulary_of(const Config& config) {
  std::error_code ignored;
  if (!std::filesystem::exists(config.data.corpus, ignored)) return GptConfig{}.vocabulary;
  return Corpus::open(config.data.corpus).vocabulary();
}

}  // namespace

void verify_command(const VerifyOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Config config = config_of(options);
  VerifyMatrix matrix = matrix_of(options, config);
  const Devices devices(config.run.device, options.config.empty() ? HostThreads{} : host_threads(config.run));
  const RingParts parts = real_parts(devices);
  Console console;
  Findings findings;
  const bool live = isatty(STDERR_FILENO) != 0;
  int64_t total = matrix.case_count();
  const auto done = [&](const VerifyCase& one) {
    findings.add(one);
    if (live && findings.cases() % 16 == 0) {
      print_error(fmt::format("\r{} of {} cases, {} failed\x1b[K", findings.cases(), total, findings.failed()));
    }
  };
  VerifyMatrix sampled = matrix;
  sampled.lengths = take_long_lengths(matrix);
  verify(matrix, parts, done);
  verify_samples(sampled, parts, done);
  std::vector<std::string> notes;
  if (!sampled.lengths.empty()) {
    notes.push_back(fmt::format("T={}: random rows recomputed in double (the dense model needs T x T)",
                                fmt::join(sampled.lengths, ", ")));
  }
  if (!options.config.empty()) {
    const bool quick = options.extent == VerifyExtent::quick;
    const OwnSizeCheck own =
        verify_own_size(config, vocabulary_of(config), parts,
                        {quick ? kQuickOwnSizeSeconds : kOwnSizeSeconds,
                         kOwnSizeMemory * double(physical_memory_bytes())});
    if (own.result) findings.add(*own.result);
    notes.push_back(own_size_line(own, config));
  }
  if (live) print_error("\r\x1b[K");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (options.format == OutputFormat::json) {
    const nlohmann::ordered_json json{{"passed", findings.failed() == 0},
                                      {"failed", findings.failed()},
                                      {"seconds", seconds.count()},
                                      {"notes", notes},
                                      {"cases", findings.json()}};
    fmt::print("{}\n", json.dump());
  } else {
    fmt::print("{}", findings.table());
    for (const std::string& note : notes) fmt::print("{}\n", note);
    for (const std::string& failure : findings.failures()) fmt::print("FAIL {}\n", failure);
    const Deviation& worst = findings.worst();
    fmt::print("{} cases, {} failed; worst: {} {:.1e} of {:.0e} allowed ({}); {:.1f} s\n", findings.cases(),
               findings.failed(), worst.quantity, worst.error, worst.tolerance, worst.where,
               seconds.count());
  }
  if (findings.failed() == 0) return;
  throw Error(fmt::format("{} of {} cases failed, first: {}", findings.failed(), findings.cases(),
                          findings.failures().front()),
              "do not train with this build on this machine");
}

}  // namespace ringlet
