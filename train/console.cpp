#include "train/console.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace ringlet {
namespace {

/// The value with the largest unit in which it is at least 1.
std::string with_unit(double value, double base, std::span<const char* const> units) {
  size_t unit = 0;
  // 0.9995: what would be shown as 1000 belongs to the next unit.
  while (unit + 1 < units.size() && std::abs(value) >= 0.9995 * base) {
    value /= base;
    ++unit;
  }
  if (unit == 0) return fmt::format("{:.0f}{}", value, units[unit]);
  return fmt::format("{:.{}f}{}", value, value < 99.95 ? 1 : 0, units[unit]);
}

/// Of a text in UTF-8, none of whose characters is wide.
size_t columns_of(std::string_view text) {
  return size_t(std::ranges::count_if(text, [](char byte) { return (byte & 0xC0) != 0x80; }));
}

/// What cannot be shown is no reason to end a training.
void put(std::FILE* stream, std::string_view text) { (void)!std::fwrite(text.data(), 1, text.size(), stream); }

/// A step's share in the mean of the step times, from which the ETA is made.
constexpr double kNewest = 0.1;

}  // namespace

void print_error(std::string_view text) { put(stderr, text); }

std::string human_count(double count) {
  constexpr std::array<const char*, 7> kUnits{"", "k", "M", "G", "T", "P", "E"};
  return with_unit(count, 1000, kUnits);
}

std::string human_bytes(double bytes) {
  constexpr std::array<const char*, 5> kUnits{" B", " KiB", " MiB", " GiB", " TiB"};
  return with_unit(bytes, 1024, kUnits);
}

std::string human_seconds(double seconds) {
  if (!(seconds >= 0 && seconds < 1e9)) return "?";
  const auto whole = int64_t(std::llround(seconds));
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  if (whole < 86400) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  return fmt::format("{}d{:02}h", whole / 86400, whole / 3600 % 24);
}

std::string format_table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], columns_of(row[i]));
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? fmt::format("{:<{}}", row[i], widths[i])
                     : fmt::format("  {:>{}}", row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  }
  return text;
}

std::string progress_text(const MetricsRecord& record, double eta_seconds) {
  std::string text = fmt::format(
      "[{}/{}] loss {:.3f}{} lr {:.2g} norm {:.2f} {} tokens/s", record.step, record.steps,
      record.loss,
      quarters_text(record.loss, record.loss_first_quarter, record.loss_last_quarter, 2),
      record.learning_rate, record.gradient_norm, human_count(record.tokens_per_second));
  if (eta_seconds >= 0) {
    text += record.stage > 0 ? fmt::format(" ETA of stage {} ", record.stage) : " ETA ";
    text += human_seconds(eta_seconds);
  }
  return text;
}

Console::Console(std::FILE* stream) : stream_(stream), terminal_(isatty(fileno(stream)) == 1) {}

Console::~Console() {
  if (!live_.empty()) std::fputc('\n', stream_);
  std::fflush(stream_);
}

void Console::progress(const MetricsRecord& record) {
  if (record.stage != stage_) mean_step_ms_ = 0;  // another length, another time
  stage_ = record.stage;
  mean_step_ms_ = mean_step_ms_ == 0 ? record.step_ms
                                     : (1 - kNewest) * mean_step_ms_ + kNewest * record.step_ms;
  const int64_t end = record.stage > 0 ? record.stage_end : record.steps;
  const double eta_seconds = double(end - record.step) * mean_step_ms_ / 1000;
  live_ = progress_text(record, eta_seconds);
  if (terminal_) return draw();
  put(stream_, live_ + '\n');
  std::fflush(stream_);
  live_.clear();
}

void Console::say(std::string_view line) {
  if (!live_.empty()) std::fputs("\r\x1b[K", stream_);
  put(stream_, std::string(line) + '\n');
  if (!live_.empty()) draw();
  std::fflush(stream_);
}

void Console::draw() {
  winsize size{};
  const bool known = ioctl(fileno(stream_), TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
  // A line that wraps could not be drawn over.
  const size_t width = known ? size_t(size.ws_col) - 1 : 79;
  put(stream_, '\r' + live_.substr(0, width) + "\x1b[K");
  std::fflush(stream_);
}

}  // namespace ringlet
