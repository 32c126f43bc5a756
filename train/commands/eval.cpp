#include "train/commands/eval.h"

#include <fmt/core.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/bigram.h"
#include "train/console.h"
#include "train/evaluation.h"
#include "train/resume.h"
#include "train/world.h"

namespace ringlet {
namespace {

struct EvalResult {
  int64_t step = 0, seq_len = 0, ring = 0, windows = 0;
  std::string corpus;
  std::optional<PositionBins> bins;
  std::optional<AnswerScores> answers;
  std::optional<double> bits_per_byte, bigram_loss;
  std::optional<ContextComparison> comparison;
};

void check_options(const EvalOptions& options, const Config& config, const CheckpointInfo& info,
                   const Corpus& corpus) {
  if (info.tokenizer_hash != corpus.tokenizer_hash()) {
    throw Error(fmt::format("the checkpoint's tokenizer is {}, that of {} is {}", info.tokenizer_name,
                            corpus.path(), corpus.tokenizer_name()),
                "prepare the text with the checkpoint's tokenizer");
  }
  if (!options.bigram_corpus.empty() && !corpus.answers().empty()) {
    throw UsageError(fmt::format("a bigram model scores all tokens, {} only its answers", corpus.path()),
                     "leave --bigram out");
  }
  if (options.compare_context != 0 &&
      (options.compare_context < 2 || options.compare_context >= config.run.seq_len)) {
    throw UsageError(fmt::format("a context of {} tokens cannot be compared with {}",
                                 options.compare_context, config.run.seq_len),
                     fmt::format("choose 2 to {}", config.run.seq_len - 1));
  }
}

/// The config of the run, in its last stage, with the device, ring and length that were asked for.
Config eval_config(const EvalOptions& options, const CheckpointInfo& info) {
  std::vector<std::string> overrides = options.overrides;
  const auto set = [&](const char* key, int64_t value) {
    overrides.push_back(fmt::format("{}={}", key, value));
  };
  set("run.ring", 0);
  overrides.insert(overrides.end(), {"run.link=", "memory.offload="});  // for training only
  if (options.ranks != 0) set("run.ranks", options.ranks);
  if (options.seq_len != 0) set("run.seq_len", options.seq_len);
  return trained_config(info, overrides);
}

EvalResult run_eval(const EvalOptions& options, const Config& config, const Checkpoint& checkpoint,
                    const Corpus& corpus) {
  const WindowReader reader(corpus, config.run.seq_len);
  EvalResult result;
  result.step = checkpoint.info().step;
  result.seq_len = config.run.seq_len;
  result.ring = config.run.ring_size();
  result.corpus = corpus.path();
  result.windows = reader.plan().window_count();
  if (options.windows > 0) result.windows = std::min(result.windows, options.windows);
  const GptConfig gpt_config = config.gpt(corpus.vocabulary());
  check_fits(checkpoint.info(), parameter_shapes(gpt_config));
  const SequenceLayout layout = config.run.sequence_layout();
  const StepSettings settings = config.step_settings();
  run_world(config, [&](RankContext context, Comm& world) {
    Parameters parameters(gpt_config, context.device, {}, Parameters::Gradients::absent);
    load_weights(checkpoint, parameters);
    Gpt gpt(parameters);
    const ModelRank rank{context, world, layout, settings, gpt};
    const Evaluation evaluation =
        evaluate(rank, reader, result.windows, config.data.mask, config.data.window);
    std::optional<ContextComparison> comparison;
    if (options.compare_context > 0) {
      comparison = compare_context(rank, reader, result.windows, config.data.mask,
                                   config.data.window, options.compare_context);
    }
    if (world.rank() != 0) return;
    result.bins = evaluation.bins;
    result.answers = evaluation.answers;
    result.comparison = comparison;
  });
  result.bits_per_byte = bits_per_byte(corpus, reader, result.windows, *result.bins);
  if (!options.bigram_corpus.empty()) {
    result.bigram_loss = bigram_loss(Corpus::open(options.bigram_corpus), corpus);
  }
  return result;
}

using Bins = std::vector<PositionBins::Bin>;

std::string table_of(const char* heading, const Bins& bins, const char* counted = "tokens",
                     const char* mean = "loss") {
  std::vector<std::vector<std::string>> rows{{heading, counted, mean, "standard error"}};
  for (const auto& [first, last, loss] : bins) {
    if (loss.count == 0) continue;
    rows.push_back({first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last),
                    fmt::format("{}", loss.count), fmt::format("{:.4f}", loss.mean),
                    loss.count < 2 ? "" : fmt::format("{:.4f}", loss.standard_error)});
  }
  return format_table(rows);
}

/// before, behind: the columns that other lists have, empty.
void write_bins(std::ofstream& file, const char* by, const Bins& bins, const char* before = "",
                const char* behind = "") {
  for (const auto& [first, last, loss] : bins) {
    if (loss.count == 0) continue;
    file << fmt::format("{},{},{},{}{},{:.9g},", by, first, last, before, loss.count, loss.mean)
         << (loss.count < 2 ? "" : fmt::format("{:.9g}", loss.standard_error)) << behind << '\n';
  }
}

void write_csv(const std::string& path, const EvalResult& result) {
  const PositionBins& bins = *result.bins;
  std::ofstream file(path);
  const char* const behind = result.answers ? ",,," : "";
  file << "by,first,last,tokens,loss,standard_error"
       << (result.answers ? ",answers,accuracy,accuracy_standard_error\n" : "\n");
  write_bins(file, "position", bins.by_position(), "", behind);
  write_bins(file, "distance", bins.by_distance(), "", behind);
  if (result.answers) write_bins(file, "answer_distance", result.answers->by_distance(), ",,,");
  if (!file.flush()) throw Error("cannot write " + path, "is the folder there, and the disk not full?");
}

void print_answers(const AnswerScores& answers) {
  const MeanLoss all = answers.answers(), tokens = answers.tokens();
  fmt::print("accuracy {:.4f} +- {:.4f}: {} answers, all of their tokens right", all.mean, all.standard_error,
             all.count);
  if (tokens.count != all.count) fmt::print(" (of single tokens {:.4f})", tokens.mean);
  fmt::print("\n\n{}\n", table_of("distance of the answer", answers.by_distance(), "answers", "accuracy"));
}

void print_text(const EvalResult& result, const EvalOptions& options) {
  const PositionBins& bins = *result.bins;
  fmt::print("step {} on {}: {} {}tokens in {} windows of {}, ring of {}\n", result.step, result.corpus,
             bins.count(), result.answers ? "answer " : "", result.windows, result.seq_len, result.ring);
  fmt::print("loss {:.4f} +- {:.4f} nats per token", bins.mean(), bins.standard_error());
  if (result.bits_per_byte) fmt::print(", {:.4f} bits per byte", *result.bits_per_byte);
  fmt::print("\n");
  if (std::isfinite(bins.first_quarter()) && std::isfinite(bins.last_quarter())) {
    fmt::print("first quarter of the context {:.4f}, last quarter {:.4f}\n", bins.first_quarter(), bins.last_quarter());
  }
  if (const auto score = bins.in_context_score(); score && !result.answers) {
    fmt::print("in-context score {:.4f} +- {:.4f}: around position 500 {:.4f}, around position 50 {:.4f} "
               "(below 0: context helps)\n",
               score->score(), score->standard_error(), score->around_500.mean,
               score->around_50.mean);
  }
  if (result.answers) print_answers(*result.answers);
  if (result.bigram_loss) {
    fmt::print("bigram model of the training corpus {:.4f} nats per token\n", *result.bigram_loss);
  }
  if (const auto& c = result.comparison; c && c->tokens > 0) {
    fmt::print("same {} tokens: full context {:.4f}, {} to {} tokens of context {:.4f}: difference "
               "{:.4f} +- {:.4f}\n",
               c->tokens, c->full_loss, c->context / 2, c->context, c->short_loss, c->difference,
               c->standard_error);
  }
  if (!options.by_position) return;
  fmt::print("\n{}", table_of("position", bins.by_position()));
  if (bins.distance_differs()) {
    fmt::print("\n{}", table_of("distance into the document", bins.by_distance()));
  }
}

nlohmann::ordered_json finite(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
}

nlohmann::ordered_json json_of(const Bins& bins, const char* counted = "tokens", const char* mean = "loss") {
  auto list = nlohmann::ordered_json::array();
  for (const auto& [first, last, loss] : bins) {
    list.push_back({{"first", first},
                    {"last", last},
                    {counted, loss.count},
                    {mean, finite(loss.mean)},
                    {"standard_error", finite(loss.standard_error)}});
  }
  return list;
}

void print_json(const EvalResult& result) {
  const PositionBins& bins = *result.bins;
  nlohmann::ordered_json json{{"step", result.step},       {"corpus", result.corpus},
                              {"seq_len", result.seq_len}, {"ring", result.ring},
                              {"windows", result.windows}, {"tokens", bins.count()}};
  json["loss"] = finite(bins.mean());
  json["standard_error"] = finite(bins.standard_error());
  json["loss_first_quarter"] = finite(bins.first_quarter());
  json["loss_last_quarter"] = finite(bins.last_quarter());
  if (const auto score = bins.in_context_score()) {
    json["in_context_score"] = finite(score->score());
    json["in_context_standard_error"] = finite(score->standard_error());
    json["in_context_tokens"] = {score->around_50.count, score->around_500.count};
  }
  if (const auto& answers = result.answers) {
    json["answers"] = answers->answers().count;
    json["answer_accuracy"] = finite(answers->answers().mean);
    json["answer_standard_error"] = finite(answers->answers().standard_error);
    json["answer_token_accuracy"] = finite(answers->tokens().mean);
    json["accuracy_by_distance"] = json_of(answers->by_distance(), "answers", "accuracy");
  }
  if (result.bits_per_byte) json["bits_per_byte"] = finite(*result.bits_per_byte);
  if (result.bigram_loss) json["bigram_loss"] = finite(*result.bigram_loss);
  if (const auto& c = result.comparison) {
    json["compare_context"] = {{"context", c->context},
                               {"tokens", c->tokens},
                               {"full_loss", finite(c->full_loss)},
                               {"short_loss", finite(c->short_loss)},
                               {"difference", finite(c->difference)},
                               {"standard_error", finite(c->standard_error)}};
  }
  json["by_position"] = json_of(bins.by_position());
  json["by_distance"] = json_of(bins.by_distance());
  fmt::print("{}\n", json.dump());
}

}  // namespace

void eval(const EvalOptions& options) {
  Console console;
  const Checkpoint checkpoint =
      checkpoint_of(options.run, [&](const std::string& line) { console.say(line); });
  const Config config = eval_config(options, checkpoint.info());
  const std::string path = options.corpus.empty() ? config.data.validation : options.corpus;
  if (path.empty()) {
    throw UsageError("the run has no validation corpus", "name a corpus with --corpus");
  }
  const Corpus corpus = Corpus::open(path);
  check_options(options, config, checkpoint.info(), corpus);
  const EvalResult result = run_eval(options, config, checkpoint, corpus);
  if (options.format == OutputFormat::json) {
    print_json(result);
  } else {
    print_text(result, options);
  }
  if (!options.csv.empty()) write_csv(options.csv, result);  // last: what was measured is shown in any case
}

}  // namespace ringlet
