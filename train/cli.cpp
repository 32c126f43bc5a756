#include "train/cli.h"

#include "kernels/check.h"
#include "train/cli_parts.h"
#include "train/units.h"

namespace ringlet {
namespace {

/// "LO..HI" or one number.
void set_distances(const std::string& text, TaskOptions& task) {
  const size_t dots = text.find("..");
  try {
    task.least_distance = parse_tokens(text.substr(0, dots));
    task.most_distance = dots == std::string::npos ? task.least_distance : parse_tokens(text.substr(dots + 2));
  } catch (const UsageError&) {
    task.most_distance = -1;
  }
  if (task.least_distance > task.most_distance) {
    throw UsageError(fmt::format("--distance \"{}\" is not a range", text), "write it as 100..2k, or as 500");
  }
}

void add_task(CLI::App& app, PrepareOptions& options) {
  TaskOptions& task = options.task;
  CLI::Option* named =
      app.add_option("--task", task.name, "Generate a task in place of an input: mqar, induction, copy or passkey");
  add_count(app, "--samples", options.samples, "Task: documents in all, all different");
  app.add_option_function<std::string>(
      "--seq-len", [&task](const std::string& text) { task.seq_len = parse_tokens(text); },
      "Task: tokens of a sample; 16k is 16,384 (default: 64; induction 256, passkey 512)");
  add_count(app, "--items", task.items,
            "Task: what has to be remembered: pairs of mqar (4), symbols of copy (all that fit), digits of passkey (5)");
  app.add_option_function<std::string>(
      "--distance", [&task](const std::string& text) { set_distances(text, task); },
      "Task: tokens from where an answer could be looked up to it, as in 100..2k (default: all there can be)");
  add_count(app, "--seed", task.seed, "Task: equal seeds give equal samples", 0);
  app.add_option("--text", task.text, "passkey: the file of text in which a number is hidden");
  for (const char* name : {"--samples", "--seq-len", "--items", "--distance", "--seed", "--text"}) {
    app.get_option(name)->needs(named);
  }
  for (const char* name : {"--format", "--document", "--field", "--tokenizer"}) {
    named->excludes(app.get_option(name));
  }
}

void add_prepare(CLI::App& main, PrepareCommand& command) {
  PrepareOptions& options = command.options;
  CLI::App& app = *main.add_subcommand("prepare", "Make a corpus from text, JSON lines, tokens or a generated task");
  app.add_option("INPUT", options.input.paths, "Files and folders; - is the standard input");
  app.add_option("-o,--output", options.output, "The corpus to write, NAME.h5")->required();
  add_choice<InputFormat>(app, "--format", options.input.format,
                          {{"auto", InputFormat::automatic},
                           {"text", InputFormat::text},
                           {"jsonl", InputFormat::jsonl},
                           {"tokens", InputFormat::tokens}},
                          "How the input is read; auto: by its ending (.jsonl, .bin, else text), of folders without "
                          "what is no text");
  add_choice<DocumentUnit>(app, "--document", options.input.unit,
                           {{"file", DocumentUnit::file}, {"directory", DocumentUnit::directory}},
                           "What is one document");
  app.add_option("--field", options.input.json_field, "Field of a JSON line that has the text");
  app.add_option("--tokenizer", options.tokenizer,
                 "byte, sentencepiece (trains one on the input) or the path of a .model file");
  add_count(app, "--vocabulary", options.vocabulary,
            "Size of the vocabulary to train, or of the tokens, or of a task (mqar 256, induction 16, copy 32)");
  app.add_option("--split", options.split, "What the corpus is for; a word that it carries");
  app.add_option("--validation", options.validation_share,
                 "Share of the tokens, from the end, that goes to NAME.validation.h5")
      ->check(CLI::Range(0.0, 1.0));
  add_task(app, options);
  add_json(app, command.format);
  app.footer(
      "Examples:\n"
      "  ringlet prepare book.txt -o corpora/book.h5 --validation 0.1\n"
      "  ringlet prepare sources/ --document directory -o corpora/code.h5\n"
      "  ringlet prepare pages.jsonl --tokenizer sentencepiece --vocabulary 8192 -o "
      "corpora/pages.h5\n"
      "  ringlet prepare --task mqar --seq-len 64 --items 4 --validation 0.1 -o corpora/mqar.h5\n"
      "  ringlet prepare --task passkey --text book.txt --seq-len 4k --distance 1k..3k -o corpora/passkey.h5\n"
      "Of a task only the answers are trained and scored; `ringlet eval` tells their accuracy by distance.");
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
      "  ringlet train configs/curriculum.toml --set stage.3.tokens=2000000\n"
      "  torchrun --no-python --nproc-per-node 8 ringlet train configs/long-64k.toml --device cuda --comm nccl\n"
      "configs/reference.toml documents every key.");
}

void add_eval(CLI::App& main, EvalOptions& options) {
  CLI::App& app = *main.add_subcommand("eval", "Measure the loss of a trained model");
  app.add_option("RUN", options.run, "A run's folder, or one of its checkpoints")->required();
  app.add_option("--corpus", options.corpus, "Another corpus than the run's for validation");
  app.add_option_function<std::string>(
      "--seq-len", [&options](const std::string& text) { options.seq_len = parse_tokens(text); },
      "Tokens of a window; 16k is 16,384 (default: as trained)");
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
      ->check(CLI::Range(0.0, 100.0))->capture_default_str();
  add_count(app, "--top-k", sampling.top_k, "Only the k most likely tokens (0: all)", 0);
  app.add_option("--top-p", sampling.top_p, "Only the likeliest tokens that together have so much")
      ->check(CLI::Range(0.0, 1.0))->capture_default_str();
  add_count(app, "--seed", options.seed, "Equal seeds give equal texts", 0);
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda (default: as trained)");
  add_json(app, options.format);
  app.footer(
      "Examples:\n"
      "  ringlet generate runs/book --prompt \"In the beginning\" --tokens 400\n"
      "  ringlet generate runs/book --temperature 0.8 --top-k 50 --seed 7");
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
  modes.get_option("--max-context")->excludes(app.get_option("--seq-len"));
  app.add_option("--budget", options.budget, "Memory of a rank, as in 2GiB (default: the machine's, shared out)");
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda");
  add_count(app, "--steps", options.steps, "Steps measured in a cell, at least; more where a step is short");
  app.add_flag("--calibrate", options.calibrate,
               "Predict each visit of a cell from this machine's speed right before it (ten to forty seconds a visit)");
  app.add_option("-o,--output", options.folder, "Folder of the study; the same command goes on with it")->required();
  add_json(app, options.format);
  app.footer(
      "Each cell trains the config's model on made-up text of one document, in this process, in three visits that cells take\n"
      "in turns, after a step of warm-up each. The gradient of its first step is compared with one rank's. What it takes\n"
      "stands beside what `ringlet plan` predicts. cells.csv, study.json and report.html have everything.\n"
      "A folder can be given more lengths and ranks later. Cells that failed are kept too: without its lines in\n"
      "cells.jsonl a cell is measured anew.\n"
      "Examples:\n"
      "  ringlet scale configs/quickstart.toml -o studies/quick\n"
      "  ringlet scale configs/quickstart.toml --seq-len 1k,4k,16k --ranks 1,2,4 --set run.layout=contiguous -o studies/c\n"
      "  ringlet scale configs/quickstart.toml --seq-len 2k,8k,32k --steps 1 --calibrate -o studies/predicted\n"
      "  ringlet scale configs/quickstart.toml --weak --seq-len 1k,2k -o studies/weak\n"
      "  ringlet scale configs/quickstart.toml --max-context --budget 64MiB -o studies/longest");
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
  StudyOptions study;
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
    if (name == "study") return study;
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
  add_study(app, commands.study);
  add_report(app, commands.report);
  add_doctor(app, commands.doctor);
  try {
    app.parse(argument_count, arguments);
  } catch (const CLI::CallForHelp&) {
    return HelpText{app.help()};
  } catch (const CLI::ParseError& error) {
    const auto chosen = app.get_subcommands();
    const bool no_command = chosen.empty() && argument_count > 1 && arguments[1][0] != '-';
    const std::string cause = no_command ? fmt::format("there is no command \"{}\"", arguments[1]) : error.what();
    throw UsageError(cause, fmt::format("`ringlet {}--help` shows what there is",
                                        chosen.empty() ? "" : chosen[0]->get_name() + " "));
  }
  return commands.chosen(app.get_subcommands()[0]->get_name());
}

}  // namespace ringlet
