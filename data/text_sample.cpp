#include "data/text_sample.h"

#include <algorithm>

#include "kernels/random.h"

namespace ringlet {

namespace {

constexpr size_t kSamplePartBytes = 64 << 10;
constexpr size_t kParts = 256;
constexpr size_t kMaxSampleLineBytes = 4096;

}  // namespace

void TextSample::append(std::string_view text) {
  while (!text.empty()) {
    const size_t room = kSamplePartBytes - waiting_.size();
    waiting_ += text.substr(0, room);
    text.remove_prefix(std::min(room, text.size()));
    if (waiting_.size() == kSamplePartBytes) take();
  }
}

void TextSample::end_document() {
  if (!waiting_.empty()) take();
}

void TextSample::take() {
  if (parts_.size() < kParts) {
    parts_.push_back(std::move(waiting_));
  } else {
    const auto place = mix_bits(uint64_t(seen_)) % uint64_t(seen_ + 1);
    if (place < kParts) parts_[place] = std::move(waiting_);
  }
  ++seen_;
  waiting_.clear();
}

std::vector<std::string> TextSample::lines() const {
  std::vector<std::string> lines;
  for (std::string_view rest : parts_) {
    while (!rest.empty()) {
      size_t end = std::min(rest.find('\n'), kMaxSampleLineBytes - 1) + 1;
      end = std::min(end, rest.size());
      // 10xxxxxx continues a character
      while (end > 1 && end < rest.size() && (rest[end] & 0xc0) == 0x80) --end;
      lines.emplace_back(rest.substr(0, end));
      rest.remove_prefix(end);
    }
  }
  return lines;
}

}  // namespace ringlet
