#include "train/scale/study.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <tuple>

#include "train/console.h"

namespace ringlet {
namespace {

double flops_per_core_ms(const Cell& cell) { return cell.model_flops / (cell.step_ms * cell.cores); }

bool is_measured(const Cell& cell) { return cell.status == CellStatus::done; }

/// The measured cell with the fewest ranks of those that have the same `key`; nullptr: there is no other than `cell`.
template <class Key>
const Cell* fewest_ranks(const std::vector<Cell>& cells, const Cell& cell, Key Cell::*key) {
  const Cell* found = nullptr;
  int count = 0;
  for (const Cell& other : cells) {
    if (!is_measured(other) || other.*key != cell.*key) continue;
    ++count;
    if (found == nullptr || other.ranks < found->ranks) found = &other;
  }
  return count > 1 ? found : nullptr;
}

void compare(Cell& cell, const std::vector<Cell>& cells) {
  const Cell* const same_length = fewest_ranks(cells, cell, &Cell::seq_len);
  const Cell* const same_share = fewest_ranks(cells, cell, &Cell::tokens_per_rank);
  if (same_share != nullptr) cell.weak_percent = 100 * flops_per_core_ms(cell) / flops_per_core_ms(*same_share);
  if (same_length == nullptr) return;
  cell.strong_percent = 100 * flops_per_core_ms(cell) / flops_per_core_ms(*same_length);
  if (same_length->ranks != 1) return;
  const double ideal_ms = same_length->attention_ms * same_length->cores / cell.cores;
  cell.ideal_percent = 100 * ideal_ms / (cell.attention_ms + cell.ring_wait_ms);
}

/// cells: of one number of ranks and one moment, by length.
MemoryFit memory_fit(std::span<const Cell* const> cells) {
  MemoryFit result{cells.front()->peak_moment};
  std::vector<double> shares, bytes;
  for (const Cell* cell : cells) {
    result.lengths.push_back(double(cell->seq_len));
    shares.push_back(double(cell->seq_len) / cell->ring);
    bytes.push_back(cell->peak_bytes);
  }
  result.fit = fit_polynomial(shares, bytes, 2);
  return result;
}

FitsOfRanks fits_of(int64_t ranks, const std::vector<Cell>& cells) {
  std::vector<const Cell*> along;
  for (const Cell& cell : cells) {
    if (is_measured(cell) && cell.ranks == ranks) along.push_back(&cell);
  }
  std::ranges::sort(along, {}, [](const Cell* cell) { return cell->seq_len; });
  FitsOfRanks fits{ranks};
  std::vector<double> ms;
  for (const Cell* cell : along) {
    fits.lengths.push_back(double(cell->seq_len));
    ms.push_back(cell->step_ms_p10);
  }
  fits.time = fit_polynomial(fits.lengths, ms, 3);
  for (size_t first = 0, next = 0; first < along.size(); first = next) {
    while (next < along.size() && along[next]->peak_moment == along[first]->peak_moment) ++next;
    fits.memory.push_back(memory_fit(std::span(along).subspan(first, next - first)));
  }
  return fits;
}

std::string number(double value, int digits) { return std::isfinite(value) ? fmt::format("{:.{}f}", value, digits) : "-"; }
std::string bytes_text(double value) { return std::isfinite(value) ? human_bytes(value) : "-"; }
std::string count_text(double value) { return std::isfinite(value) ? human_count(value) : "-"; }

/// Four digits or so.
std::string ms_text(double ms) { return number(ms, ms >= 1000 ? 0 : ms >= 10 ? 1 : 2); }

std::string gradient_text(const Cell& cell) {
  if (cell.gradient_note.empty()) return "-";
  return std::isfinite(cell.gradient_error) ? fmt::format("{:.0e}", cell.gradient_error) : "none";
}

/// What the column of gradients cannot say.
std::string gradient_remark(const Cell& cell) {
  if (cell.gradient_note.empty() || cell.gradient_error <= cell.gradient_tolerance) return {};
  const std::string where = fmt::format("T = {} on {} ranks: gradient ", length_text(double(cell.seq_len)), cell.ranks);
  if (std::isnan(cell.gradient_tolerance)) return where + cell.gradient_note + '\n';
  return where + fmt::format("WRONG, off by {:.1e} of {:.0e} allowed in {}: see `ringlet verify`\n",
                             cell.gradient_error, cell.gradient_tolerance, cell.gradient_note);
}

std::string time_table(const std::vector<Cell>& cells) {
  std::vector<std::vector<std::string>> table{{"T", "ranks", "a rank", "step ms", "p10-p90", "n", "predicted", "ratio",
                                               "tokens/s", "a rank", "MFU %", "12LdT %", "HFU %"}};
  for (const Cell& cell : cells) {
    if (!is_measured(cell)) continue;
    table.push_back({length_text(double(cell.seq_len)), std::to_string(cell.ranks), length_text(cell.tokens_per_rank),
                     ms_text(cell.step_ms), ms_text(cell.step_ms_p10) + "-" + ms_text(cell.step_ms_p90),
                     number(cell.steps, 0), ms_text(cell.predicted_step_ms), number(cell.predicted_ratio, 2),
                     count_text(cell.tokens_per_second), count_text(cell.tokens_per_second_per_rank), number(cell.mfu_percent, 1),
                     number(cell.mfu_palm_percent, 1), number(cell.hfu_percent, 1)});
  }
  return format_table(table);
}

std::string scaling_table(const std::vector<Cell>& cells) {
  std::vector<std::vector<std::string>> table{{"T", "ranks", "strong %", "weak %", "ideal %", "exposed ms", "bubble %",
                                               "imbalance", "peak a rank", "planned", "sent a step", "planned",
                                               "gradient"}};
  for (const Cell& cell : cells) {
    if (!is_measured(cell)) continue;
    const auto same = [](double measured, double predicted) {
      return measured == predicted ? std::string("=") : bytes_text(predicted);
    };
    table.push_back({length_text(double(cell.seq_len)), std::to_string(cell.ranks), number(cell.strong_percent, 0),
                     number(cell.weak_percent, 0), number(cell.ideal_percent, 0), ms_text(cell.exposed_ms),
                     number(cell.bubble_percent, 1), number(cell.imbalance, 2), bytes_text(cell.peak_bytes),
                     same(cell.peak_bytes, cell.predicted_peak_bytes), bytes_text(cell.sent_bytes),
                     same(cell.sent_bytes, cell.predicted_sent_bytes), gradient_text(cell)});
  }
  return format_table(table);
}

std::string residuals_text(const std::vector<double>& lengths, const PolynomialFit& fit) {
  if (fit.residuals.size() == fit.coefficients.size()) return "; through all points";
  std::string text = "\n    off by";
  for (size_t i = 0; i < fit.residuals.size(); ++i) {
    text += fmt::format("{} {:+.1f} % at {}", i == 0 ? "" : ",", 100 * fit.residuals[i], length_text(lengths[i]));
  }
  return text;
}

std::string doubts_text(const PolynomialFit& fit) {
  const std::string names = fit.not_positive();
  return names.empty() ? "" : "; not positive: " + names;
}

nlohmann::ordered_json fit_json(const PolynomialFit& fit) {
  return {{"coefficients", fit.coefficients}, {"residuals", fit.residuals}, {"not_positive", fit.not_positive()}};
}

}  // namespace

std::string length_text(double tokens) {
  if (!std::isfinite(tokens)) return "-";
  const auto count = int64_t(tokens);
  if (count >= 1 << 20 && count % (1 << 20) == 0) return fmt::format("{}M", count >> 20);
  if (count >= 1 << 10 && count % (1 << 10) == 0) return fmt::format("{}k", count >> 10);
  return fmt::format("{}", count);
}

std::string Study::mode() const {
  const auto found = settings.find("mode");
  return found == settings.end() ? "" : found->second;
}

std::string Study::title() const {
  const auto text = [&](const char* name) {
    const auto found = settings.find(name);
    return found == settings.end() ? "?" : found->second;
  };
  const char* const what = mode() == "weak" ? "Weak scaling" : mode() == "strong" ? "Strong scaling" : "Longest context";
  return fmt::format("{} of {} in {} layout on {}", what, text("model"), cells.empty() ? "?" : cells.front().layout,
                     text("machine"));
}

Study make_study(CellsOfStudy read) {
  Study study{std::move(read.settings), merge_visits(read.visits), {}};
  const bool weak = study.mode() == "weak";
  std::ranges::sort(study.cells, {}, [&](const Cell& cell) {
    const auto ring = std::isfinite(cell.ring) ? int64_t(cell.ring) : cell.ranks;
    return std::tuple(weak ? cell.seq_len / ring : cell.seq_len, cell.ranks);
  });
  for (Cell& cell : study.cells) {
    if (is_measured(cell)) compare(cell, study.cells);
  }
  std::set<int64_t> ranks;
  for (const Cell& cell : study.cells) {
    if (is_measured(cell)) ranks.insert(cell.ranks);
  }
  for (const int64_t count : ranks) study.fits.push_back(fits_of(count, study.cells));
  return study;
}

std::string time_fit_text(const FitsOfRanks& fits) {
  const std::vector<double>& k = fits.time.coefficients;
  if (k.empty()) return fmt::format("R = {}: fewer than 3 lengths", fits.ranks);
  return fmt::format("R = {}: a = {:.4g} ms, b = {:.4g} us, c = {:.4g} ns{}{}", fits.ranks, k[0], 1e3 * k[1], 1e6 * k[2],
                     doubts_text(fits.time), residuals_text(fits.lengths, fits.time));
}

std::string memory_fit_text(const FitsOfRanks& fits) {
  std::string text;
  for (const MemoryFit& memory : fits.memory) {
    const double shortest = memory.lengths.front(), longest = memory.lengths.back();
    const std::string range = shortest == longest ? length_text(shortest)
                                                  : length_text(shortest) + " to " + length_text(longest);
    text += fmt::format("{}R = {}, {}, fullest in {}: ", text.empty() ? "" : "\n  ", fits.ranks, range, memory.moment);
    const std::vector<double>& k = memory.fit.coefficients;
    text += k.empty() ? "one length"
                      : fmt::format("a = {}, b = {:.0f} B{}{}", human_bytes(k[0]), k[1], doubts_text(memory.fit),
                                    residuals_text(memory.lengths, memory.fit));
  }
  return text;
}

std::string to_text(const Study& study) {
  std::string text = time_table(study.cells) + '\n' + scaling_table(study.cells);
  bool predicted = false;
  for (const Cell& cell : study.cells) {
    predicted = predicted || std::isfinite(cell.predicted_step_ms);
    if (is_measured(cell)) continue;
    text += fmt::format("T = {} on {} rank{}: {}: {}\n", length_text(double(cell.seq_len)), cell.ranks,
                        cell.ranks == 1 ? "" : "s", name_of(cell.status), cell.reason);
  }
  for (const Cell& cell : study.cells) text += gradient_remark(cell);
  text += "\np10 of step ms = a + b T + c T^2, least relative squares\n";
  for (const FitsOfRanks& fits : study.fits) text += "  " + time_fit_text(fits) + '\n';
  text += "peak bytes = a + b T / ring, a line for each moment in which memory is fullest\n";
  for (const FitsOfRanks& fits : study.fits) text += "  " + memory_fit_text(fits) + '\n';
  text +=
      "\nratio: predicted over measured step, median of the visits.\n"
      "MFU: 6 N T + 12 L d a visible pair over the FMA peak of the cores, measured before and after, or the published bf16\n"
      "peak of the GPUs; 12LdT: every pair counted; HFU: what runs. strong, weak: model FLOP/s a core beside the fewest ranks\n"
      "of the same T, of the same tokens a rank. ideal: one rank's attention time over the cores, over attention and waits\n"
      "for the ring. =: to the byte.\n"
      "gradient: of the first step, of the parameter that is off most, beside one rank's; relative, in L2.\n";
  if (!predicted) text += "Times are predicted with --calibrate, or once `ringlet plan CONFIG --ranks R --calibrate` has run here.\n";
  return text;
}

nlohmann::ordered_json to_json(const Study& study) {
  nlohmann::ordered_json json{{"settings", study.settings}};
  json["cells"] = nlohmann::ordered_json::array();
  for (const Cell& cell : study.cells) json["cells"].push_back(to_json(cell));
  json["fits"] = nlohmann::ordered_json::array();
  for (const FitsOfRanks& fits : study.fits) {
    nlohmann::ordered_json lines = nlohmann::ordered_json::array();
    for (const MemoryFit& memory : fits.memory) {
      nlohmann::ordered_json line{{"moment", memory.moment}, {"lengths", memory.lengths}};
      line.update(fit_json(memory.fit));
      lines.push_back(std::move(line));
    }
    json["fits"].push_back({{"ranks", fits.ranks}, {"lengths", fits.lengths}, {"time_ms", fit_json(fits.time)},
                            {"memory_bytes", std::move(lines)}});
  }
  return json;
}

}  // namespace ringlet
