#include "train/commands/inspect_corpus.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "data/corpus.h"

namespace ringlet {

namespace {

using Json = nlohmann::ordered_json;

std::vector<CorpusReport::LengthBin> length_bins(const std::vector<int64_t>& lengths) {
  const auto bin_of = [](int64_t length) { return std::bit_width(uint64_t(length)) - 1; };
  const auto [shortest, longest] = std::minmax_element(lengths.begin(), lengths.end());
  const auto first = bin_of(*shortest);
  std::vector<CorpusReport::LengthBin> bins(size_t(bin_of(*longest) - first) + 1);
  for (size_t i = 0; i < bins.size(); ++i) bins[i].from_tokens = int64_t{1} << (size_t(first) + i);
  for (const int64_t length : lengths) {
    auto& bin = bins[size_t(bin_of(length) - first)];
    ++bin.document_count;
    bin.token_count += length;
  }
  return bins;
}

std::vector<CorpusReport::Context> contexts(const std::vector<int64_t>& lengths, int64_t tokens) {
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::vector<CorpusReport::Context> contexts;
  for (int64_t context = 1024; context < longest; context *= 4) {
    int64_t reached = 0;
    for (const int64_t length : lengths) reached += std::max<int64_t>(0, length - context);
    contexts.push_back({context, double(reached) / double(tokens)});
  }
  return contexts;
}

std::vector<CorpusReport::Longest> longest_documents(const Corpus& corpus,
                                                     const std::vector<int64_t>& lengths) {
  std::vector<int64_t> order(lengths.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = int64_t(i);
  const size_t count = std::min<size_t>(5, order.size());
  std::partial_sort(order.begin(), order.begin() + std::ptrdiff_t(count), order.end(),
                    [&](int64_t a, int64_t b) {
                      return std::pair(-lengths[size_t(a)], a) < std::pair(-lengths[size_t(b)], b);
                    });
  std::vector<CorpusReport::Longest> longest;
  for (size_t i = 0; i < count; ++i) {
    longest.push_back({corpus.document_name(order[i]), lengths[size_t(order[i])]});
  }
  return longest;
}

void count_answers(const Corpus& corpus, CorpusReport& report) {
  const auto distances = corpus.answer_distances();
  if (distances.empty()) return;
  const auto bin_of = [](int64_t distance) { return std::bit_width(uint64_t(distance)) - 1; };
  const auto [least, most] = std::ranges::minmax_element(distances);
  const auto first = bin_of(*least);
  report.distances.resize(size_t(bin_of(*most) - first) + 1);
  for (size_t i = 0; i < report.distances.size(); ++i) {
    report.distances[i].from_tokens = int64_t{1} << (size_t(first) + i);
  }
  report.answer_tokens = std::ssize(distances);
  for (int64_t answer = 0; answer < report.answer_tokens; answer = corpus.answer_end(answer)) {
    ++report.answer_count;
    ++report.distances[size_t(bin_of(distances[size_t(answer)]) - first)].answer_count;
  }
}

std::string bar(double share) {
  std::string line;
  for (int i = 0; i < int(share * 40 + 0.5); ++i) line += "█";
  return line;
}

/// 1024 as 1k, 1048576 as 1M; exact for the powers of two that stand in the tables.
std::string short_count(int64_t count) {
  if (count >= 1 << 20) return fmt::format("{}M", count >> 20);
  return count >= 1024 ? fmt::format("{}k", count >> 10) : fmt::format("{}", count);
}

std::string answers_text(const CorpusReport& report) {
  std::string text = fmt::format(
      "\n{} answers, {} tokens: they alone are trained and scored; distance to where they stand\n"
      "  {:>8} {:>10}\n",
      report.answer_count, report.answer_tokens, "from", "answers");
  for (const CorpusReport::DistanceBin& bin : report.distances) {
    text += fmt::format("  {:>8} {:>10} {}\n", short_count(bin.from_tokens), bin.answer_count,
                        bar(double(bin.answer_count) / double(report.answer_count)));
  }
  return text;
}

}  // namespace

CorpusReport inspect_corpus(const std::string& path, CorpusCheck check) {
  const Corpus corpus = Corpus::open(path);
  if (check == CorpusCheck::everything) corpus.verify();
  const auto offsets = corpus.document_offsets();
  std::vector<int64_t> lengths;
  lengths.reserve(offsets.size() - 1);
  for (size_t i = 1; i < offsets.size(); ++i) lengths.push_back(offsets[i] - offsets[i - 1]);

  CorpusReport report;
  report.path = path;
  report.fingerprint = corpus.fingerprint();
  report.split = corpus.split();
  report.tokenizer = corpus.tokenizer_name();
  report.tokenizer_hash = corpus.tokenizer_hash();
  report.token_count = corpus.token_count();
  report.document_count = corpus.document_count();
  report.vocabulary = corpus.vocabulary();
  report.end_of_document = corpus.end_of_document();
  report.file_bytes = corpus.file_bytes();
  report.checked = check;
  report.lengths = length_bins(lengths);
  report.contexts = contexts(lengths, corpus.token_count());
  report.longest = longest_documents(corpus, lengths);
  count_answers(corpus, report);
  report.longest_tokens = report.longest.front().token_count;
  const auto middle = lengths.begin() + std::ptrdiff_t(lengths.size() / 2);
  std::nth_element(lengths.begin(), middle, lengths.end());
  report.median_tokens = *middle;
  return report;
}

std::string to_text(const CorpusReport& report) {
  std::string text = fmt::format(
      "{}\n  {} tokens in {} document{}, {:.1f} MB, content {}\n  tokenizer {} ({}), vocabulary "
      "{}, "
      "end of document {}{}\n",
      report.path, report.token_count, report.document_count, report.document_count == 1 ? "" : "s",
      double(report.file_bytes) / 1e6, report.fingerprint, report.tokenizer, report.tokenizer_hash,
      report.vocabulary, report.end_of_document,
      report.split.empty() ? "" : ", split " + report.split);
  if (report.checked == CorpusCheck::everything) text += "  all tokens read, checksums agree\n";
  text += fmt::format("\ndocument length: median {}, longest {} tokens\n  {:>8} {:>10} {:>8}\n",
                      report.median_tokens, report.longest_tokens, "from", "documents", "tokens");
  for (const CorpusReport::LengthBin& bin : report.lengths) {
    const double share = double(bin.token_count) / double(report.token_count);
    text += fmt::format("  {:>8} {:>10} {:>7.1f}% {}\n", short_count(bin.from_tokens),
                        bin.document_count, 100 * share, bar(share));
  }
  if (report.answer_count > 0) text += answers_text(report);
  text += "\nlongest documents\n";
  for (const CorpusReport::Longest& document : report.longest) {
    text += fmt::format("  {:>12} {}\n", document.token_count, document.name);
  }
  if (report.contexts.empty()) return text + "\nno document is longer than 1k tokens\n";
  text += "\nshare of tokens with at least T tokens of their own document before them\n";
  for (const CorpusReport::Context& context : report.contexts) {
    text += fmt::format("  T = {:>5} {:>6.1f}% {}\n", short_count(context.tokens),
                        100 * context.share, bar(context.share));
  }
  return text;
}

std::string to_json(const CorpusReport& report) {
  Json lengths = Json::array(), contexts = Json::array(), longest = Json::array();
  for (const auto& bin : report.lengths) {
    lengths.push_back({{"from_tokens", bin.from_tokens},
                       {"document_count", bin.document_count},
                       {"token_count", bin.token_count}});
  }
  for (const auto& context : report.contexts) {
    contexts.push_back({{"tokens", context.tokens}, {"share", context.share}});
  }
  for (const auto& document : report.longest) {
    longest.push_back({{"name", document.name}, {"token_count", document.token_count}});
  }
  Json object{{"path", report.path},
                    {"fingerprint", report.fingerprint},
                    {"split", report.split},
                    {"tokenizer", report.tokenizer},
                    {"tokenizer_hash", report.tokenizer_hash},
                    {"vocabulary", report.vocabulary},
                    {"end_of_document", report.end_of_document},
                    {"token_count", report.token_count},
                    {"document_count", report.document_count},
                    {"file_bytes", report.file_bytes},
                    {"verified", report.checked == CorpusCheck::everything},
                    {"median_tokens", report.median_tokens},
                    {"longest_tokens", report.longest_tokens},
                    {"lengths", lengths},
                    {"contexts", contexts},
                    {"longest", longest}};
  if (report.answer_count > 0) {
    object["answer_count"] = report.answer_count;
    object["answer_tokens"] = report.answer_tokens;
    for (const auto& bin : report.distances) {
      object["answer_distances"].push_back(
          {{"from_tokens", bin.from_tokens}, {"answer_count", bin.answer_count}});
    }
  }
  // a document's name need not be UTF-8
  return object.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace ringlet
