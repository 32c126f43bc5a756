#include "train/metrics.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

namespace ringlet {
namespace {

/// Collects the keys of one line in their order.
class JsonLine {
  using Json = nlohmann::ordered_json;

 public:
  void put(const char* key, int64_t value) { json_[key] = value; }
  void put(const char* key, double value) { json_[key] = finite(key, value); }
  void put(const char* key, const std::vector<double>& values) {
    auto& list = json_[key] = Json::array();
    for (const double value : values) list.push_back(finite(key, value));
  }
  void put(const char* key, const std::vector<int64_t>& values) { json_[key] = values; }

  void put(const char* key, const std::vector<PositionBins::Bin>& bins) {
    auto& object = json_[key] = Json::object();
    for (const char* list : {"first", "last", "count", "mean", "standard_error"}) {
      object[list] = Json::array();
    }
    for (const auto& [first, last, loss] : bins) {
      object["first"].push_back(first);
      object["last"].push_back(last);
      object["count"].push_back(loss.count);
      // No tokens have no mean and one has no deviation: null, and nothing is wrong.
      object["mean"].push_back(loss.count < 1 ? Json() : finite(key, loss.mean));
      object["standard_error"].push_back(
          loss.count < 2 ? Json() : finite(key, loss.standard_error));
    }
  }

  void put(const std::optional<InContextScore>& score) {
    if (!score) return;
    put("in_context_score", score->score());
    put("in_context_standard_error", score->standard_error());
    put("in_context_tokens",
        std::vector<int64_t>{score->around_50.count, score->around_500.count});
  }

  std::string text() {
    if (!non_finite_.empty()) json_["non_finite"] = non_finite_;
    return json_.dump();
  }

 private:
  Json finite(const char* key, double value) {
    if (std::isfinite(value)) return value;
    if (std::find(non_finite_.begin(), non_finite_.end(), key) == non_finite_.end()) {
      non_finite_.push_back(key);
    }
    return nullptr;
  }

  Json json_ = Json::object();
  std::vector<std::string> non_finite_;
};

}  // namespace

double MetricsRecord::imbalance() const {
  if (compute_ms.empty()) return 1;
  const double sum = std::accumulate(compute_ms.begin(), compute_ms.end(), 0.0);
  const double largest = *std::max_element(compute_ms.begin(), compute_ms.end());
  return sum == 0 ? 1 : largest * double(compute_ms.size()) / sum;  // NaN shows
}

std::string to_json_line(const MetricsRecord& record) {
  JsonLine line;
  line.put("step", record.step);
  line.put("steps", record.steps);
  line.put("loss", record.loss);
  line.put("loss_first_quarter", record.loss_first_quarter);
  line.put("loss_last_quarter", record.loss_last_quarter);
  line.put(record.in_context_score);
  line.put("learning_rate", record.learning_rate);
  line.put("gradient_norm", record.gradient_norm);
  line.put("tokens", record.tokens);
  line.put("tokens_per_second", record.tokens_per_second);
  line.put("step_ms", record.step_ms);
  line.put("data_wait_ms", record.data_wait_ms);
  line.put("skipped_steps", record.skipped_steps);
  line.put("compute_ms", record.compute_ms);
  line.put("exposed_ms", record.exposed_ms);
  line.put("bubble_percent", record.bubble_percent);
  line.put("imbalance", record.imbalance());
  line.put("peak_bytes", record.peak_bytes);
  line.put("sent_bytes", record.sent_bytes);
  line.put("loss_by_position", record.loss_by_position);
  line.put("loss_by_distance", record.loss_by_distance);
  return line.text();
}

std::string to_json_line(const EvalRecord& record) {
  const PositionBins& bins = record.bins;
  JsonLine line;
  line.put("step", record.step);
  line.put("eval_loss", bins.mean());
  line.put("eval_standard_error", bins.standard_error());
  line.put("eval_tokens", bins.count());
  line.put("loss_first_quarter", bins.first_quarter());
  line.put("loss_last_quarter", bins.last_quarter());
  line.put(bins.in_context_score());
  line.put("loss_by_position", bins.by_position());
  line.put("loss_by_distance", bins.by_distance());
  return line.text();
}

}  // namespace ringlet
