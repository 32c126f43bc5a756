#include "train/cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>

#include "kernels/check.h"
#include "train/units.h"

namespace ringlet {
namespace {

constexpr int64_t kAnyCount = int64_t(1) << 48;
constexpr int64_t kMostProfiledSteps = 1000;  // every call of theirs is kept in memory

void add_json(CLI::App& app, OutputFormat& format) {
  app.add_flag_callback(
      "--json", [&format] { format = OutputFormat::json; },
      "One JSON object on stdout; messages go to stderr");
}

void add_count(CLI::App& app, const char* name, int64_t& value, const char* meaning,
               int64_t lowest = 1, int64_t highest = kAnyCount) {
  app.add_option(name, value, meaning)->check(CLI::Range(lowest, highest));
}

template <class Enumeration>
void add_choice(CLI::App& app, const char* name, Enumeration& value,
                const std::map<std::string, Enumeration>& words, const char* meaning) {
  app.add_option_function<std::string>(
         name, [words, &value](const std::string& word) { value = words.at(word); }, meaning)
      ->check(CLI::IsMember(words));
}

/// An option that stands for a key of the config.
void add_key(CLI::App& app, const char* name, const char* key,
             std::vector<std::string>& overrides, const char* meaning) {
  app.add_option_function<std::string>(
      name,
      [key, &overrides](const std::string& value) {
        overrides.push_back(fmt::format("{}={}", key, value));
      },
      fmt::format("{} (the key {})", meaning, key));
}

/// The same for a number of tokens, which may be written as 16k.
void add_tokens_key(CLI::App& app, const char* name, const char* key, std::vector<std::string>& overrides,
                    const char* meaning) {
  app.add_option_function<std::string>(
      name,
      [key, &overrides](const std::string& value) {
        overrides.push_back(fmt::format("{}={}", key, value == "0" ? 0 : parse_tokens(value)));
      },
      fmt::format("{} (the key {})", meaning, key));
}

void add_settings(CLI::App& app, std::vector<std::string>& overrides) {
  app.add_option_function<std::vector<std::string>>(
         "--set",
         [&overrides](const std::vector<std::string>& settings) {
           overrides.insert(overrides.end(), settings.begin(), settings.end());
         },
         "key=value in place of the config's; may be repeated")
      ->allow_extra_args(false);
}

void add_prepare(CLI::App& main, PrepareCommand& command) {
  PrepareOptions& options = command.options;
  CLI::App& app = *main.add_subcommand("prepare", "Make a corpus from text, JSON lines or tokens");
  app.add_option("INPUT", options.input.paths, "Files and folders; - is the standard input")
      ->required();
  app.add_option("-o,--output", options.output, "The corpus to write, NAME.h5")->required();
  add_choice<InputFormat>(app, "--format", options.input.format,
                          {{"auto", InputFormat::automatic},
                           {"text", InputFormat::text},
                           {"jsonl", InputFormat::jsonl},
                           {"tokens", InputFormat::tokens}},
                          "How the input is read; auto: by its ending");
  add_choice<DocumentUnit>(app, "--document", options.input.unit,
                           {{"file", DocumentUnit::file}, {"directory", DocumentUnit::directory}},
                           "What is one document");
  app.add_option("--field", options.input.json_field, "Field of a JSON line that has the text");
  app.add_option("--tokenizer", options.tokenizer,
                 "byte, sentencepiece (trains one on the input) or the path of a .model file");
  add_count(app, "--vocabulary", options.vocabulary,
            "Size of the vocabulary to train, or of the tokens");
  app.add_option("--split", options.split, "What the corpus is for; a word that it carries");
  app.add_option("--validation", options.validation_share,
                 "Share of the tokens, from the end, that goes to NAME.validation.h5")
      ->check(CLI::Range(0.0, 1.0));
  add_json(app, command.format);
  app.footer(
      "Examples:\n"
      "  ringlet prepare book.txt -o corpora/book.h5 --validation 0.1\n"
      "  ringlet prepare sources/ --document directory -o corpora/code.h5\n"
      "  ringlet prepare pages.jsonl --tokenizer sentencepiece --vocabulary 8192 -o "
      "corpora/pages.h5");
}

void add_inspect(CLI::App& main, InspectOptions& options) {
  CLI::App& app =
      *main.add_subcommand("inspect", "Show what a corpus, a checkpoint or a run holds");
  app.add_option("PATH", options.path, "A corpus, a checkpoint's folder or a run's folder")
      ->required();
  app.add_flag_callback(
      "--verify", [&options] { options.check = CorpusCheck::everything; },
      "Read everything and compare the checksums");
  add_json(app, options.format);
  app.footer(
      "Examples:\n"
      "  ringlet inspect corpora/book.h5 --verify\n"
      "  ringlet inspect runs/book\n"
      "  ringlet inspect runs/book/checkpoints/step_00000100");
}

void add_train(CLI::App& main, TrainOptions& options) {
  CLI::App& app = *main.add_subcommand("train", "Train a model as a config says");
  app.add_option("CONFIG", options.config, "A config, such as configs/quickstart.toml")->required();
  add_settings(app, options.overrides);
  app.add_flag_callback(
      "--resume", [&options] { options.resume = ResumeChoice::newest; },
      "Go on from the newest whole checkpoint of the run");
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_key(app, "--threads-per-rank", "run.threads_per_rank", options.overrides,
          "Threads that compute for each rank (default: the cores, shared out)");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  add_key(app, "--steps", "train.steps", options.overrides, "Optimizer steps");
  add_key(app, "--name", "run.name", options.overrides, "Name of the run");
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda");
  add_key(app, "--dtype", "run.dtype", options.overrides, "Of activations: f32 or bf16");
  add_key(app, "--comm", "run.comm", options.overrides, "Ranks are threads, or processes with a GPU each: nccl");
  add_key(app, "--link", "run.link", options.overrides, "Emulate a link between the ranks, as in 1GB/s,50us");
  app.footer(
      "Examples:\n"
      "  ringlet train configs/quickstart.toml --ranks 4\n"
      "  ringlet train configs/tiny.toml --set model.width=128 --set data.corpus=corpora/book.h5\n"
      "  ringlet train configs/quickstart.toml --resume\n"
      "  torchrun --no-python --nproc-per-node 8 ringlet train configs/long-64k.toml --device cuda --comm nccl\n"
      "configs/reference.toml documents every key.");
}

void add_eval(CLI::App& main, EvalOptions& options) {
  CLI::App& app = *main.add_subcommand("eval", "Measure the loss of a trained model");
  app.add_option("RUN", options.run, "A run's folder, or one of its checkpoints")->required();
  app.add_option("--corpus", options.corpus, "Another corpus than the run's for validation");
  add_count(app, "--seq-len", options.seq_len, "Tokens of a window (default: as trained)");
  add_count(app, "--ranks", options.ranks, "Ranks of the ring (default: as trained)");
  add_count(app, "--windows", options.windows, "Windows to read (default: all)");
  app.add_option("--bigram", options.bigram_corpus,
                 "Also the loss of a bigram model with the counts of this corpus");
  app.add_flag("--by-position", options.by_position,
               "Tables of the loss by position in the window and, where windows hold several "
               "documents, by distance into the document");
  app.add_option("--csv", options.csv, "Write both tables to this file");
  add_count(app, "--compare-context", options.compare_context,
            "Also score with at most so many tokens of context, and compare", 2);
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda (default: as trained)");
  add_json(app, options.format);
  app.footer(
      "Examples:\n"
      "  ringlet eval runs/book\n"
      "  ringlet eval runs/book --by-position --seq-len 65536 --ranks 4\n"
      "  ringlet eval runs/book --by-position --csv positions.csv\n"
      "  ringlet eval runs/book --compare-context 1024 --json\n"
      "Bins double: 0, 1, 2-3, 4-7, ... A document that began before the window counts from the "
      "window's start.\n"
      "In-context score (arXiv:2209.11895): loss around position 500 (475-524) minus loss around "
      "position 50 (45-54);\n"
      "below 0, the context helps. Absent where windows are shorter than 525 tokens.");
}

void add_generate(CLI::App& main, GenerateOptions& options) {
  CLI::App& app = *main.add_subcommand("generate", "Write text with a trained model");
  SamplingSettings& sampling = options.sampling;
  app.add_option("RUN", options.run, "A run's folder, or one of its checkpoints")->required();
  app.add_option("--prompt", options.prompt, "The text to go on from");
  add_count(app, "--tokens", options.tokens, "Tokens to write");
  app.add_option("--temperature", sampling.temperature, "0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0));
  add_count(app, "--top-k", sampling.top_k, "Only the k most likely tokens (0: all)", 0);
  app.add_option("--top-p", sampling.top_p, "Only the likeliest tokens that together have so much")
      ->check(CLI::Range(0.0, 1.0));
  add_count(app, "--seed", options.seed, "Equal seeds give equal texts", 0);
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda (default: as trained)");
  add_json(app, options.format);
  app.footer(
      "Examples:\n"
      "  ringlet generate runs/book --prompt \"In the beginning\" --tokens 400\n"
      "  ringlet generate runs/book --temperature 0.8 --top-k 50 --seed 7");
}

void add_plan(CLI::App& main, PlanOptions& options) {
  CLI::App& app = *main.add_subcommand("plan", "Tell what a run will need and do, before it starts");
  app.add_option("CONFIG", options.config, "A config, such as configs/quickstart.toml");
  add_settings(app, options.overrides);
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  app.add_option("--device", options.device, "this (default), h200, h100, a100: a device for each rank");
  app.add_option("--link", options.link,
                 "What connects the ranks: bandwidth in each direction and latency, as in 450GB/s,3us, or nvlink4, "
                 "nvlink3, infiniband400, infiniband100");
  app.add_option("--budget", options.budget, "Memory of a rank, as in 80GiB (default: the device's)");
  add_count(app, "--vocabulary", options.vocabulary, "Of the model (default: the corpus's; 257 where there is none)");
  CLI::Option* max_context =
      app.add_flag("--max-context", options.max_context, "Also the longest T in the budget, for each knob");
  CLI::Option* tune = app.add_flag(
      "--tune", options.tune,
      "Rank the settings for the link: rings, layouts, KV heads, window lengths; and the first whose communication is hidden");
  app.add_flag("--measure", options.measure, "With --tune: run three real steps of the best settings on this machine as well")
      ->needs(tune);
  app.add_option("--corpus", options.corpus,
                 "Plan its windows, with their documents, too (default: the config's data.corpus, where it is there)")
      ->excludes(tune);
  add_count(app, "--windows", options.windows, "Windows of the corpus to plan, rounded up to steps (default: one step)");
  tune->excludes(max_context)->excludes(app.get_option("--windows"));
  app.add_flag("--paper", options.paper,
               "The block-size and activation tables of the ring attention paper, by its formulas and by ours");
  app.add_flag("--calibrate", options.calibrate,
               "Measure this machine first (about ten seconds); kept for later plans");
  add_json(app, options.format);
  app.footer(
      "The trainer's own step runs on a device that computes nothing, over a ring that sends nothing: bytes of memory\n"
      "and of messages are exact, on every rank. Times come from measured or published rates.\n"
      "Examples:\n"
      "  ringlet plan configs/quickstart.toml --calibrate\n"
      "  ringlet plan configs/quickstart.toml --tune --link 20MB/s,50us --measure\n"
      "  ringlet plan configs/quickstart.toml --corpus corpora/books.h5 --windows 100\n"
      "  ringlet plan configs/long-64k.toml --max-context --budget 2GiB\n"
      "  ringlet plan configs/long-64k.toml --ranks 1024 --seq-len 16777216 --set model.layers=32 --device h200");
}

void add_verify(CLI::App& main, VerifyOptions& options) {
  CLI::App& app = *main.add_subcommand(
      "verify", "Prove that the ring computes what one device computes");
  app.add_option("CONFIG", options.config,
                 "A config: its heads, masks and ring, and its own size where that is quick (default: all kinds)");
  add_settings(app, options.overrides);
  app.add_option("--ranks", options.ranks, "Ring sizes, as in 1,2,3,4,8")->delimiter(',');
  app.add_option("--lengths", options.lengths, "Lengths in tokens, as in 61,1000")->delimiter(',');
  app.add_flag_callback(
      "--quick", [&options] { options.extent = VerifyExtent::quick; }, "Seconds instead of minutes");
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda");
  add_key(app, "--dtype", "run.dtype", options.overrides, "Of activations: f32 or bf16");
  add_json(app, options.format);
  app.footer(
      "Losses of every position, attention outputs and LSE, every gradient and the weights after one step are\n"
      "compared with a dense model in double precision; a token is changed to see that it is felt only where it\n"
      "may be. Lengths too long for the dense model are checked by random rows, recomputed in double. Exit\n"
      "code 0: every case passed.\n"
      "Examples:\n"
      "  ringlet verify --quick\n"
      "  ringlet verify configs/quickstart.toml\n"
      "  ringlet verify --ranks 5,7 --lengths 13,1000");
}

void add_explain(CLI::App& main, ExplainOptions& options) {
  CLI::App& app = *main.add_subcommand("explain", "Draw the ring: who holds, computes and sends what, hop by hop");
  app.add_option("CONFIG", options.config, "A config to take ranks, ring, length, layout, window and heads from");
  add_settings(app, options.overrides);
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  add_choice<std::vector<Layout>>(app, "--layout", options.layouts,
                                  {{"contiguous", {Layout::contiguous}},
                                   {"zigzag", {Layout::zigzag}},
                                   {"striped", {Layout::striped}},
                                   {"all", {Layout::contiguous, Layout::zigzag, Layout::striped}}},
                                  "Who holds which positions (default: the config's; all without a config)");
  app.add_option("--documents", options.documents,
                 "Lengths of the window's documents in tokens, in their order, as in 3000,500,16k; what they leave of the "
                 "window is one more (default: one document)");
  add_tokens_key(app, "--window", "data.window", options.overrides, "Sliding window: a token sees at most so many; 0: all");
  app.add_option("--svg", options.svg, "Also draw a picture into this file");
  add_json(app, options.format);
  app.footer(
      "Computed from the layout, the schedule and the mask of the trainer itself. A block is what one rank holds: its keys\n"
      "and values go round the ring, one rank further at each hop, and visit those whose queries see them. The work is the\n"
      "pairs of a query and a key that it sees. The JSON has every rank and hop, and for rings of up to 64 every rank at\n"
      "every hop.\n"
      "Examples:\n"
      "  ringlet explain --ranks 4 --seq-len 4k\n"
      "  ringlet explain --ranks 8 --seq-len 64k --layout zigzag --documents 3000,500,16k --svg ring.svg\n"
      "  ringlet explain configs/long-64k.toml --layout all --window 4k");
}

void add_profile(CLI::App& main, ProfileOptions& options) {
  CLI::App& app = *main.add_subcommand("profile", "Trace a few steps and tell what does not hide behind compute");
  app.add_option("CONFIG", options.config, "A config, such as configs/quickstart.toml")->required();
  app.add_option("-o,--output", options.output, "The folder of the traces, which is not there yet")->required();
  add_settings(app, options.overrides);
  add_count(app, "--steps", options.steps, "Steps to measure", 1, kMostProfiledSteps);
  add_count(app, "--warmup", options.warmup, "Steps before them, not measured", 1, kMostProfiledSteps);
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_key(app, "--threads-per-rank", "run.threads_per_rank", options.overrides,
          "Threads that compute for each rank (default: the cores, shared out)");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  add_key(app, "--link", "run.link", options.overrides, "Emulate a link between the ranks, as in 1GB/s,50us");
  add_json(app, options.format);
  app.footer(
      "Trains as `ringlet train` does, on the config's corpus, or on made-up text where there is none; saves nothing.\n"
      "FOLDER/rank_0.json, rank_1.json, ... are read by Holistic Trace Analysis; FOLDER/perfetto/all_ranks.json shows\n"
      "all ranks and their messages in ui.perfetto.dev. hidden: share of the time that messages travel in which the rank\n"
      "computes. exposed: the rank stands still for a message; late: before the message began to travel.\n"
      "Examples:\n"
      "  ringlet profile configs/quickstart.toml --steps 3 -o traces/quickstart\n"
      "  ringlet profile configs/quickstart.toml --ranks 2 --link 20MB/s,50us -o traces/slow-link");
}

void add_scale(CLI::App& main, ScaleOptions& options) {
  CLI::App& app = *main.add_subcommand("scale", "Measure how a step scales with its length and the ranks");
  app.add_option("CONFIG", options.config, "A config, such as configs/quickstart.toml")->required();
  add_settings(app, options.overrides);
  app.add_option("--seq-len", options.lengths,
                 "Lengths in tokens, over all ranks; k is 1024 (default: 1k,2k,4k)")->delimiter(',');
  app.add_option("--ranks", options.ranks, "Numbers of ranks (default: 1,2,4)")
      ->delimiter(',')->check(CLI::Range(int64_t{1}, int64_t{1} << 16));
  CLI::Option_group& modes = *app.add_option_group("mode", "What the lengths are");
  const auto add_mode = [&](const char* name, ScaleMode mode, const char* meaning) {
    modes.add_flag_callback(name, [&options, mode] { options.mode = mode; }, meaning);
  };
  add_mode("--strong", ScaleMode::strong, "Every length on every number of ranks (default)");
  add_mode("--weak", ScaleMode::weak, "The lengths are tokens of a rank");
  add_mode("--max-context", ScaleMode::max_context, "The longest that fits on each number of ranks, trained one step");
  modes.require_option(0, 1);
  app.add_option("--budget", options.budget, "Memory of a rank, as in 2GiB (default: the machine's, shared out)");
  add_count(app, "--steps", options.steps, "Steps measured in a cell, at least; more where a step is short");
  app.add_option("-o,--output", options.folder, "Folder of the study; the same command goes on with it")->required();
  add_json(app, options.format);
  app.footer(
      "Each cell trains the config's model on made-up text of one document, after two steps of warm-up, in this process.\n"
      "What it takes stands beside what `ringlet plan` predicts. cells.csv, study.json and report.html have everything.\n"
      "A folder can be given more lengths and ranks later. Cells that failed are kept too: without its line in\n"
      "cells.jsonl a cell is measured anew.\n"
      "Examples:\n"
      "  ringlet scale configs/quickstart.toml -o studies/quick\n"
      "  ringlet scale configs/quickstart.toml --seq-len 1k,4k,16k --ranks 1,2,4 --set run.layout=contiguous -o studies/c\n"
      "  ringlet scale configs/quickstart.toml --weak --seq-len 1k,2k -o studies/weak\n"
      "  ringlet scale configs/quickstart.toml --max-context --budget 64MiB -o studies/longest");
}

void add_report(CLI::App& main, ReportOptions& options) {
  CLI::App& app = *main.add_subcommand("report", "Draw runs, side by side, and studies: one page of plots and tables");
  app.add_option("FOLDER", options.folders, "Folders of runs, as runs/NAME, and of studies")->required();
  app.add_option("-o,--output", options.output,
                 "The page, NAME.html; each plot beside it as .svg (default: report.html in the only folder, or here)");
  add_json(app, options.format);
  app.footer(
      "Examples:\n"
      "  ringlet report runs/book\n"
      "  ringlet report runs/book runs/book-documents -o compared.html\n"
      "  ringlet report studies/quick");
}

void add_doctor(CLI::App& main, DoctorCommand& command) {
  CLI::App& app = *main.add_subcommand("doctor", "Show what this machine has and what is missing");
  add_json(app, command.format);
  app.footer("Example:\n  ringlet doctor");
}

/// One of each: the parser fills in the one that was asked for.
struct Commands {
  PrepareCommand prepare;
  InspectOptions inspect;
  TrainOptions train;
  EvalOptions eval;
  GenerateOptions generate;
  PlanOptions plan;
  VerifyOptions verify;
  ExplainOptions explain;
  ProfileOptions profile;
  ScaleOptions scale;
  ReportOptions report;
  DoctorCommand doctor;

  Command chosen(const std::string& name) const {
    if (name == "prepare") return prepare;
    if (name == "inspect") return inspect;
    if (name == "train") return train;
    if (name == "eval") return eval;
    if (name == "generate") return generate;
    if (name == "plan") return plan;
    if (name == "verify") return verify;
    if (name == "explain") return explain;
    if (name == "profile") return profile;
    if (name == "scale") return scale;
    if (name == "report") return report;
    return doctor;
  }
};

}  // namespace

Command parse_command_line(int argument_count, const char* const* arguments) {
  CLI::App app("Ringlet trains small GPTs on very long documents with exact ring attention.",
               "ringlet");
  app.require_subcommand(1);
  app.footer("`ringlet COMMAND --help` explains a command and gives examples.");
  Commands commands;
  add_prepare(app, commands.prepare);
  add_inspect(app, commands.inspect);
  add_train(app, commands.train);
  add_eval(app, commands.eval);
  add_generate(app, commands.generate);
  add_plan(app, commands.plan);
  add_verify(app, commands.verify);
  add_explain(app, commands.explain);
  add_profile(app, commands.profile);
  add_scale(app, commands.scale);
  add_report(app, commands.report);
  add_doctor(app, commands.doctor);
  try {
    app.parse(argument_count, arguments);
  } catch (const CLI::CallForHelp&) {
    return HelpText{app.help()};
  } catch (const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    throw UsageError(error.what(), fmt::format("`ringlet {}--help` shows what there is",
                                               chosen.empty() ? "" : chosen[0]->get_name() + " "));
  }
  return commands.chosen(app.get_subcommands()[0]->get_name());
}

}  // namespace ringlet
