#include "train/commands/generate.h"

#include <fmt/core.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "kernels/random.h"
#include "model/gpt.h"
#include "train/console.h"
#include "train/evaluation.h"
#include "train/resume.h"
#include "train/world.h"

namespace ringlet {
namespace {

struct Generated {
  std::vector<int32_t> tokens;  // without the prompt
  double seconds = 0;
};

/// `take` sees each token as it is drawn.
Generated sample(const GenerateOptions& options, const Checkpoint& checkpoint, const Config& config,
                 const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                 const std::function<void(int32_t)>& take) {
  const GptConfig gpt_config = config.gpt(tokenizer.vocabulary());
  check_fits(checkpoint.info(), parameter_shapes(gpt_config));
  const CounterRandom random(uint64_t(options.seed), hash_name("generate"));
  Generated result;
  run_world(config, [&](RankContext context, Comm&) {
    const auto start = std::chrono::steady_clock::now();
    Parameters parameters(gpt_config, context.device, {}, Parameters::Gradients::absent);
    load_weights(checkpoint, parameters);
    Gpt gpt(parameters);
    KvCache cache(gpt_config, int64_t(prompt.size()) + options.tokens, context.device);
    const Tensor logits_row =
        context.device.arena().allocate("inputs", Dtype::f32, {1, gpt_config.vocabulary, 1, 1});
    std::vector<float> logits(gpt_config.vocabulary);
    std::vector<int32_t> input = prompt;
    while (int64_t(result.tokens.size()) < options.tokens) {
      gpt.extend(context, config.step_settings(), config.data.window, input, cache, logits_row);
      read<float>(context.device, logits_row, logits);
      const int32_t token =
          sample_token(logits, options.sampling, random.uniform(result.tokens.size()));
      if (token == tokenizer.end_of_document()) break;
      result.tokens.push_back(token);
      take(token);
      input = {token};
    }
    result.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  });
  return result;
}

}  // namespace

std::string settled(std::string text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  while (text.ends_with(kReplacement)) text.resize(text.size() - kReplacement.size());
  return text;
}

void generate(const GenerateOptions& options) {
  validate(options.sampling);
  if (options.tokens < 1) throw UsageError("nothing to generate", "ask for one token or more");
  Console console;
  const Checkpoint checkpoint =
      checkpoint_of(options.run, [&](const std::string& line) { console.say(line); });
  std::vector<std::string> alone{"run.ranks=1", "run.ring=0", "memory.offload="};
  alone.insert(alone.end(), options.overrides.begin(), options.overrides.end());
  const Config config = trained_config(checkpoint.info(), alone);
  const Corpus corpus = Corpus::open(config.data.corpus);  // carries the tokenizer
  if (checkpoint.info().tokenizer_hash != corpus.tokenizer_hash()) {
    throw Error("the corpus " + corpus.path() + " has another tokenizer than the checkpoint",
                "put the run's corpus back in its place");
  }
  const std::unique_ptr<Tokenizer> tokenizer = corpus.tokenizer();
  const std::string prompt = options.prompt.empty() ? "\n" : options.prompt;
  const std::vector<int32_t> prompt_tokens = tokenizer->encode(prompt);
  if (prompt_tokens.empty()) {
    throw UsageError("the prompt holds no tokens",
                     fmt::format("give a --prompt that the corpus' tokenizer, {}, reads", tokenizer->name()));
  }

  const bool json = options.format == OutputFormat::json;
  std::vector<int32_t> so_far = prompt_tokens;
  std::string shown = tokenizer->decode(so_far);
  if (!json) fmt::print("{}{}", prompt, shown.starts_with(prompt) ? shown.substr(prompt.size()) : "");  // a blank after ids
  const Generated result =
      sample(options, checkpoint, config, *tokenizer, prompt_tokens, [&](int32_t token) {
        if (json) return;
        // Decoding everything keeps pieces that depend on their neighbours right; texts are short.
        so_far.push_back(token);
        const std::string text = settled(tokenizer->decode(so_far));
        if (text.size() <= shown.size()) return;
        fmt::print("{}", text.substr(shown.size()));
        std::fflush(stdout);
        shown = text;
      });
  if (json) {
    const nlohmann::ordered_json object{
        {"step", checkpoint.info().step},   {"prompt", prompt},
        {"text", tokenizer->decode(result.tokens)}, {"tokens", result.tokens},
        {"seconds", result.seconds},        {"seed", options.seed}};
    fmt::print("{}\n",
               object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  } else {
    const std::string text = tokenizer->decode(so_far);
    fmt::print("{}\n", text.substr(std::min(shown.size(), text.size())));
  }
}

}  // namespace ringlet
