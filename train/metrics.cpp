#include "train/metrics.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

namespace ringlet {
namespace {

/// A mean that is not a number, of a part of numbers whose mean is one.
bool no_tokens(double part, double whole) { return std::isnan(part) && std::isfinite(whole); }

/// Collects the keys of one line in their order.
class JsonLine {
  using Json = nlohmann::ordered_json;

 public:
  void put(const char* key, int64_t value) { json_[key] = value; }
  void put(const char* key, double value) { json_[key] = finite(key, value); }
  /// A mean: null, and nothing is wrong, of nothing at all.
  void put_mean(const char* key, double mean, bool of_any) { json_[key] = of_any ? finite(key, mean) : Json(); }
  /// The mean of a part of the tokens: null, and nothing is wrong, where none of them counts.
  void put_part(const char* key, double part, double whole) {
    json_[key] = no_tokens(part, whole) ? Json() : finite(key, part);
  }
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

  void put(const std::optional<AnswerScores>& scores) {
    if (!scores) return;
    put_mean("answer_accuracy", scores->answers().mean, scores->answers().count > 0);
    put("answers", scores->answers().count);
    put_mean("answer_token_accuracy", scores->tokens().mean, scores->tokens().count > 0);
    put("accuracy_by_distance", scores->by_distance());
  }

  void put_stage(int64_t stage, int64_t seq_len) {
    if (stage == 0) return;
    put("stage", stage);
    put("seq_len", seq_len);
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

std::optional<double> MetricsRecord::imbalance() const {
  if (compute_ms.empty()) return {};
  const double sum = std::accumulate(compute_ms.begin(), compute_ms.end(), 0.0);
  const double largest = *std::max_element(compute_ms.begin(), compute_ms.end());
  return sum == 0 ? 1 : largest * double(compute_ms.size()) / sum;  // NaN shows
}

std::string quarters_text(double loss, double first_quarter, double last_quarter, int digits) {
  if (no_tokens(first_quarter, loss) || no_tokens(last_quarter, loss)) return {};
  return fmt::format(" (first 1/4 {:.{}f}, last 1/4 {:.{}f})", first_quarter, digits, last_quarter, digits);
}

std::string to_json_line(const MetricsRecord& record) {
  JsonLine line;
  line.put("step", record.step);
  line.put("steps", record.steps);
  line.put_stage(record.stage, record.seq_len);
  const bool any = std::isfinite(record.loss) || record.loss_by_position.empty() ||
                   std::ranges::any_of(record.loss_by_position, [](const auto& bin) { return bin.loss.count > 0; });
  line.put_mean("loss", record.loss, any);
  line.put_part("loss_first_quarter", record.loss_first_quarter, any ? record.loss : 0);
  line.put_part("loss_last_quarter", record.loss_last_quarter, any ? record.loss : 0);
  line.put(record.in_context_score);
  line.put("learning_rate", record.learning_rate);
  line.put("gradient_norm", record.gradient_norm);
  line.put("tokens", record.tokens);
  line.put("tokens_per_second", record.tokens_per_second);
  line.put("step_ms", record.step_ms);
  line.put("data_wait_ms", record.data_wait_ms);
  line.put("skipped_steps", record.skipped_steps);
  if (!record.compute_ms.empty()) line.put("compute_ms", record.compute_ms);
  line.put("exposed_ms", record.exposed_ms);
  line.put("bubble_percent", record.bubble_percent);
  if (const std::optional<double> imbalance = record.imbalance()) line.put("imbalance", *imbalance);
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
  line.put_stage(record.stage, record.seq_len);
  const bool any = bins.count() > 0;
  line.put_mean("eval_loss", bins.mean(), any);
  line.put_mean("eval_standard_error", bins.standard_error(), any);
  line.put("eval_tokens", bins.count());
  line.put_part("loss_first_quarter", bins.first_quarter(), any ? bins.mean() : 0);
  line.put_part("loss_last_quarter", bins.last_quarter(), any ? bins.mean() : 0);
  line.put(bins.in_context_score());
  line.put(record.answers);
  line.put("loss_by_position", bins.by_position());
  line.put("loss_by_distance", bins.by_distance());
  return line.text();
}

}  // namespace ringlet
