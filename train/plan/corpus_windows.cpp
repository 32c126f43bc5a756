#include "train/plan/corpus_windows.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "train/console.h"

namespace ringlet {
namespace {

constexpr size_t kMostNamed = 12;

/// Documents that reach into the window; padding is none.
int64_t documents_in(const Window& window) {
  return std::ranges::count_if(window.document_starts, [&](int64_t start) { return start < window.token_count; });
}

/// Something of a step, first, mean and worst (largest) over the steps, and of the worst case.
std::vector<std::string> row_of(const char* name, const CorpusPlan& plan, const Plan& worst_case,
                                double (*value)(const Plan&), std::string (*text)(double)) {
  double sum = 0, most = 0;
  for (const CorpusStep& step : plan.steps) {
    sum += value(step.plan);
    most = std::max(most, value(step.plan));
  }
  return {name, text(value(plan.steps.front().plan)), text(sum / double(plan.steps.size())), text(most),
          text(value(worst_case))};
}

std::string windows_text(const DryRun& run, const CorpusPlan& plan) {
  std::string named;
  int64_t windows = 0, documents = 0, fewest = 0, most = 0;
  for (const CorpusStep& step : plan.steps) {
    for (const Window& window : step.windows) {
      const int64_t count = documents_in(window);
      fewest = windows == 0 ? count : std::min(fewest, count);
      most = std::max(most, count);
      documents += count;
      if (size_t(windows) < kMostNamed) named += fmt::format("{}{}", windows == 0 ? "" : " ", window.index);
      ++windows;
    }
  }
  if (size_t(windows) > kMostNamed) named += " ...";
  return fmt::format(
      "{}: the first {} window{} of the run, {} step{} ({}, seed {}): {}\n"
      "documents in a window: {} to {}, in the mean {:.1f}\n",
      plan.corpus, windows, windows == 1 ? "" : "s", plan.steps.size(), plan.steps.size() == 1 ? "" : "s",
      run.config.data.order == OrderMode::shuffled ? "shuffled" : "sequential", run.config.run.seed, named, fewest, most,
      double(documents) / double(windows));
}

}  // namespace

CorpusPlan plan_windows(const DryRun& run, const Corpus& corpus, int64_t windows, const Rates* rates, int threads_per_rank,
                        int cores) {
  const Config& config = run.config;
  const WindowReader reader(corpus, config.run.seq_len);
  const int64_t per_step = config.train.batch_windows, steps = std::max<int64_t>(1, (windows + per_step - 1) / per_step);
  CorpusPlan plan{corpus.path(), {}};
  for (int64_t cursor = 0; cursor < steps * per_step;) {
    CorpusStep step;
    for (int64_t i = 0; i < per_step; ++i, ++cursor) {
      const int64_t index = window_of(uint64_t(config.run.seed), cursor, reader.plan().window_count(), config.data.order);
      step.windows.push_back(reader.plan().window(index));
    }
    DryRun on_windows = run;
    on_windows.windows = step.windows;
    step.plan = make_plan(on_windows, rates, threads_per_rank, cores);
    plan.steps.push_back(std::move(step));
  }
  return plan;
}

std::string corpus_text(const DryRun& run, const CorpusPlan& plan, const Plan& worst_case) {
  std::vector<std::vector<std::string>> table{
      {"with the documents of the corpus", "first step", "mean", "worst", "one document a window"}};
  const auto add = [&](const char* name, double (*value)(const Plan&), std::string (*text)(double)) {
    table.push_back(row_of(name, plan, worst_case, value, text));
  };
  const auto flops = [](double value) { return human_count(value) + "FLOP"; };
  const auto bytes = [](double value) { return fmt::format("{:.0f} B", value); };
  const auto ms = [](double value) { return fmt::format("{:.4g} ms", 1e3 * value); };
  add("work, model", [](const Plan& step) { return step.flops.model; }, flops);
  add("work, executed", [](const Plan& step) { return step.flops.executed; }, flops);
  add("sent, at most by a rank", [](const Plan& step) { return double(step.most_sent_bytes()); }, bytes);
  if (worst_case.step_seconds > 0) {
    add("predicted step", [](const Plan& step) { return step.step_seconds; }, ms);
    add("bubble", [](const Plan& step) { return step.bubble_percent(); },
        [](double value) { return fmt::format("{:.1f} %", value); });
  }
  std::string text = windows_text(run, plan) + format_table(table);
  text.pop_back();
  if (!worst_case.every_rank) text += "\nof the ranks that were run dry; others have other windows";
  return text;
}

nlohmann::ordered_json to_json(const CorpusPlan& plan) {
  nlohmann::ordered_json json{{"path", plan.corpus}};
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const CorpusStep& step = plan.steps[i];
    nlohmann::ordered_json one{{"step", i + 1}};
    for (const Window& window : step.windows) {
      one["windows"].push_back({{"index", window.index}, {"tokens", window.token_count},
                                {"documents", documents_in(window)}});
    }
    one["model_flops"] = step.plan.flops.model;
    one["executed_flops"] = step.plan.flops.executed;
    for (const DryStep& rank : step.plan.ranks) {
      one["traffic"].push_back({{"rank", rank.rank}, {"sent_bytes", rank.traffic.bytes()}});
    }
    if (step.plan.step_seconds > 0) {
      one["step_seconds"] = step.plan.step_seconds;
      one["tokens_per_second"] = double(step.plan.tokens_per_step) / step.plan.step_seconds;
      one["bubble_percent"] = step.plan.bubble_percent();
    }
    json["steps"].push_back(std::move(one));
  }
  return json;
}

}  // namespace ringlet
