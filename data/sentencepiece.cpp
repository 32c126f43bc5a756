#include <fmt/core.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <unordered_map>

#include "data/tokenizer.h"
#include "kernels/check.h"

namespace ringlet {

namespace {

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(std::string model) : model_(std::move(model)) {
    const auto status = processor_.LoadFromSerializedProto(model_);
    if (!status.ok()) {
      throw Error(fmt::format("this is not a SentencePiece model: {}", status.error_message()),
                  "Give a .model file as spm_train writes it.");
    }
  }
  std::string name() const override { return "sentencepiece"; }
  int64_t vocabulary() const override { return processor_.GetPieceSize() + 1; }
  int64_t end_of_document() const override { return processor_.GetPieceSize(); }
  std::string model() const override { return model_; }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int> ids;
    const auto status = processor_.Encode({text.data(), text.size()}, &ids);
    if (!status.ok()) throw Error(fmt::format("cannot encode text: {}", status.error_message()));
    return {ids.begin(), ids.end()};
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::vector<int> known;
    for (const int32_t id : ids) {
      if (id >= 0 && id < processor_.GetPieceSize()) known.push_back(id);
    }
    std::string text;
    const auto status = processor_.Decode(known, &text);
    if (!status.ok()) throw Error(fmt::format("cannot decode tokens: {}", status.error_message()));
    return text;
  }

  std::optional<int64_t> text_bytes(std::span<const int32_t> ids) const override {
    constexpr std::string_view kBlank = "\u2581";  // stands for a blank in the pieces
    int64_t bytes = 0;
    for (const int32_t id : ids) {
      if (id < 0 || id >= processor_.GetPieceSize() || processor_.IsControl(id)) continue;
      const std::string& piece = processor_.IdToPiece(id);
      bytes += processor_.IsByte(id) ? 1 : int64_t(piece.size());
      for (size_t at = piece.find(kBlank); at != piece.npos; at = piece.find(kBlank, at + 1)) {
        bytes -= int64_t(kBlank.size()) - 1;
      }
    }
    return bytes;
  }

 private:
  std::string model_;
  sentencepiece::SentencePieceProcessor processor_;
};

class SampleIterator : public sentencepiece::SentenceIterator {
 public:
  explicit SampleIterator(const std::vector<std::string>& sample) : sample_(sample) {}
  bool done() const override { return next_ == sample_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return sample_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& sample_;
  size_t next_ = 0;
};

}  // namespace

std::unique_ptr<Tokenizer> make_sentencepiece_tokenizer(std::string model) {
  return std::make_unique<SentencePieceTokenizer>(std::move(model));
}

std::unique_ptr<Tokenizer> train_sentencepiece(const std::vector<std::string>& sample,
                                               int64_t pieces) {
  const std::unordered_map<std::string, std::string> settings{
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(pieces)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"character_coverage", "0.9995"},
      {"max_sentence_length", "8192"},
      {"bos_id", "-1"},
      {"eos_id", "-1"},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  SampleIterator sentences(sample);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
  if (!status.ok()) {
    // "FILE(LINE) [CONDITION] REASON. Advice for its own program."
    std::string reason = status.error_message();
    if (const size_t end = reason.rfind("] "); end != reason.npos) reason = reason.substr(end + 2);
    const bool too_small = reason.find("smaller than required_chars") != reason.npos;
    throw Error(fmt::format("cannot train a SentencePiece model of {} pieces: {}", pieces,
                            reason.substr(0, reason.find(". Increase"))),
                too_small ? "Ask for a larger --vocabulary: each character is a piece."
                          : "Ask for a smaller --vocabulary, or give more text.");
  }
  return make_sentencepiece_tokenizer(std::move(model));
}

}  // namespace ringlet
