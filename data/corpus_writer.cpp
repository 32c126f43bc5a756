#include "data/corpus_writer.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "data/corpus.h"
#include "data/corpus_image.h"
#include "kernels/check.h"

namespace ringlet {

namespace {

constexpr size_t kMaxNames = 100'000;

}  // namespace

CorpusSpool::CorpusSpool(const std::string& folder, const Tokenizer& tokenizer)
    : folder_(folder),
      tokenizer_(tokenizer),
      token_bytes_(tokenizer.vocabulary() <= 65536 ? 2 : 4),
      narrow_(folder),
      wide_(folder),
      ends_(folder),
      answers_(folder),
      distances_(folder) {}

void CorpusSpool::append(std::span<const int32_t> tokens) {
  const int64_t vocabulary = tokenizer_.vocabulary();
  for (const int32_t token : tokens) {
    CHECK(token >= 0 && token < vocabulary, "token ", token, " of a vocabulary of ", vocabulary);
    if (token_bytes_ == 2)
      narrow_.append(static_cast<uint16_t>(token));
    else
      wide_.append(static_cast<uint32_t>(token));
  }
  token_count_ += int64_t(tokens.size());
  const int64_t spooled_bytes = token_count_ * token_bytes_;
  if (spooled_bytes < next_disk_check_) return;
  next_disk_check_ = spooled_bytes + kDiskCheckBytes;
  // the corpus itself takes once more what the spool has taken
  const int64_t free_bytes = free_disk_bytes(folder_);
  if (free_bytes < spooled_bytes) {
    throw Error(fmt::format("the disk of {} has {} MB left, the corpus needs more than {} MB",
                            folder_, free_bytes / 1'000'000, spooled_bytes / 1'000'000),
                "Make room on that disk, or write to another one.");
  }
}

void CorpusSpool::add_answer(int64_t place, int64_t distance) {
  CHECK(1 <= distance && distance <= place, "an answer at ", place, ", ", distance, " behind");
  answers_.append(document_start_ + place);
  distances_.append(distance);
}

int64_t CorpusSpool::first_answer_from(int64_t token) const {
  int64_t first = 0, count = answer_count();
  while (count > 0) {
    int64_t answer = 0;
    read_answers(first + count / 2, {&answer, 1});
    if (answer < token) {
      first += count / 2 + 1;
      count -= count / 2 + 1;
    } else {
      count /= 2;
    }
  }
  return first;
}

void CorpusSpool::end_document(std::string_view name) {
  if (token_count_ == document_start_) {
    ++empty_documents_;
    return;
  }
  document_start_ = token_count_;
  ends_.append(token_count_);
  if (keeps_names_ && names_.size() == kMaxNames) {
    keeps_names_ = false;
    names_ = {};
  }
  // the end of a long path tells more than its beginning
  const size_t limit = size_t(kMaxNameBytes);
  if (keeps_names_) {
    names_.emplace_back(name.size() > limit ? name.substr(name.size() - limit) : name);
  }
}

void CorpusSpool::finish() {
  narrow_.flush();
  wide_.flush();
  ends_.flush();
  answers_.flush();
  distances_.flush();
}

void CorpusSpool::read_tokens(int64_t first, std::span<std::byte> tokens) const {
  if (token_bytes_ == 2) {
    narrow_.read(first, {reinterpret_cast<uint16_t*>(tokens.data()), tokens.size() / 2});
  } else {
    wide_.read(first, {reinterpret_cast<uint32_t*>(tokens.data()), tokens.size() / 4});
  }
}

std::vector<CorpusPart> split_spool(const CorpusSpool& spool, double share) {
  const int64_t tokens = spool.token_count(), documents = spool.document_count();
  if (share == 0) return {{0, tokens, 0, documents}};
  CHECK(share > 0 && share < 1 && tokens >= 2, "a share of ", share, " of ", tokens, " tokens");
  const auto wanted =
      std::clamp<int64_t>(std::llround(double(tokens) * (1 - share)), 1, tokens - 1);
  if (documents == 1) return {{0, wanted, 0, 1}, {wanted, tokens - wanted, 0, 1}};
  int64_t best_document = 0, best_end = 0;
  std::vector<int64_t> ends;
  for (int64_t first = 0; first < documents - 1; first += int64_t(ends.size())) {
    ends.resize(size_t(std::min(kBlockTokens, documents - 1 - first)));
    spool.read_ends(first, ends);
    for (size_t i = 0; i < ends.size(); ++i) {
      if (best_end != 0 && std::abs(ends[i] - wanted) >= std::abs(best_end - wanted)) continue;
      best_end = ends[i];
      best_document = first + int64_t(i) + 1;
    }
  }
  return {{0, best_end, 0, best_document},
          {best_end, tokens - best_end, best_document, documents - best_document}};
}

PendingCorpus::PendingCorpus(const CorpusSpool& spool, const CorpusPart& part,
                             const std::string& split, const std::string& path)
    : path_(path), temporary_(path + '.' + std::to_string(getpid()) + ".partial") {
  try {
    write_corpus_image(spool, part, split, temporary_);
    Corpus::open(temporary_).verify();
  } catch (...) {
    unlink(temporary_.c_str());
    throw;
  }
}

PendingCorpus::~PendingCorpus() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void PendingCorpus::publish() {
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_with_errno("write", path_);
  temporary_.clear();
  sync_directory(folder_of(path_));
}

}  // namespace ringlet
