#include "train/plan/prediction.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/machine.h"
#include "train/plan/calibration.h"
#include "train/quantile.h"
#include "train/units.h"
#include "train/world.h"

namespace ringlet {
namespace {

std::string ratio(double predicted, double measured) {
  return measured > 0 ? fmt::format("{:.3f}", predicted / measured) : "";
}

/// Bytes of the process beside its arenas and its program.
int64_t host_bytes(const Plan& plan, int threads_per_rank) {
  // Of each row: its loss and first visible position, and token and label of the batch in use and of four ahead.
  int64_t rows = 0;
  for (const DryStep& rank : plan.ranks) rows += rank.rows;
  return rows * (4 + 8 + 5 * 8) + std::ssize(plan.ranks) * host_bytes_of_rank(threads_per_rank);
}

}  // namespace

int64_t host_bytes_of_rank(int threads) {
  constexpr int64_t kHugePage = int64_t{2} << 20;
  return cpu_scratch_bytes(threads) + kHugePage;
}

Prediction::Prediction(const Config& config, const GptConfig& gpt, const Devices& devices, int64_t process_bytes_before,
                       int64_t gpu_arena_bytes)
    : config_(config), devices_(devices), rates_(load_rates(devices.rates_name(gpt.dtype))) {
  if (rates_ && !config.run.link.empty()) rates_->link = parse_link(config.run.link);
  plan_ = make_plan({config, gpt, Mask{{0}, config.data.window}}, rates_ ? &*rates_ : nullptr,
                    devices.threads_per_rank(), devices.worker_count());
  if (!rates_ || rates_->foreign_bytes <= 0) return;
  if (devices.kind() == DeviceKind::cuda) {
    if (gpu_arena_bytes == 0) return;
    process_bytes_ = devices.bytes_of_ranks(gpu_arena_bytes, config.run.ranks) + int64_t(rates_->foreign_bytes);
    return;
  }
  int64_t bytes = host_bytes(plan_, devices.threads_per_rank()) + int64_t(rates_->foreign_bytes);
  for (const DryStep& rank : plan_.ranks) bytes += rank.peak_bytes;
  process_bytes_ = std::max(process_bytes_before, bytes);
}

void Prediction::add(const MetricsRecord& record) {
  const int64_t verify_every = config_.run.verify;
  if (verify_every > 0 && record.step % verify_every == 0) return;
  step_ms_.push_back(record.step_ms);
  last_ = record;
}

std::string Prediction::text() const {
  if (step_ms_.size() < 2 || !plan_.every_rank) return "";
  std::vector<std::vector<std::string>> table{{"predicted beside measured", "predicted", "measured", "ratio"}};
  const auto most = [](const std::vector<int64_t>& values) { return *std::ranges::max_element(values); };
  const auto add_bytes = [&](const char* name, int64_t predicted, int64_t measured) {
    table.push_back({name, fmt::format("{} B", predicted), fmt::format("{} B", measured),
                     ratio(double(predicted), double(measured))});
  };
  add_bytes("arena of the fullest rank", plan_.fullest().peak_bytes, most(last_.peak_bytes));
  const bool exact = config_.data.mask == MaskRule::causal;
  add_bytes(exact ? "sent in a step, at most by a rank" : "sent in a step, at most by a rank (one document)", plan_.most_sent_bytes(),
            most(last_.sent_bytes));
  if (process_bytes_ > 0 && devices_.kind() == DeviceKind::cpu)
    add_bytes("memory of the process", process_bytes_, peak_resident_bytes());
  else if (process_bytes_ > 0)
    add_bytes("memory taken on the GPU", process_bytes_, devices_.used_bytes());
  if (plan_.step_seconds > 0) {
    const double middle = median({step_ms_.begin() + 1, step_ms_.end()});
    table.push_back({"a step", fmt::format("{:.4g} ms", 1e3 * plan_.step_seconds), fmt::format("{:.4g} ms", middle),
                     ratio(1e3 * plan_.step_seconds, middle)});
  }
  std::string text = format_table(table);
  while (text.ends_with('\n')) text.pop_back();
  if (rates_)
    text += "\nthe time of a step is by rates " + rates_->source_text();
  else
    text += "\ntimes are predicted too once `ringlet plan CONFIG --calibrate` has run here";
  return text;
}

}  // namespace ringlet
