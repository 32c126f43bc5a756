#include "train/cli_parts.h"

namespace ringlet {
namespace {

constexpr int64_t kMostProfiledSteps = 1000;  // every call of theirs is kept in memory

/// The studies, each with what it varies and an example.
std::string studies_text() {
  std::string text = "Studies and Examples:\n";
  for (const StudyKind& kind : study_kinds()) {
    text +=
        fmt::format("\n{}: {}\n{}\n  {}\n", kind.name, kind.question, kind.varies, kind.example);
  }
  return text;
}

}  // namespace

void add_plan(CLI::App& main, PlanOptions& options) {
  CLI::App& app =
      *main.add_subcommand("plan", "Tell what a run will need and do, before it starts");
  app.add_option("CONFIG", options.config, "A config, such as configs/quickstart.toml");
  add_settings(app, options.overrides);
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  add_count(app, "--stage", options.stage,
            "Of a config with [[stage]]: the one to plan (default: the one that needs most memory)");
  app.add_option("--device", options.device,
                 "this (default), h200, h100, a100: a device for each rank");
  app.add_option("--link", options.link,
                 "What connects the ranks: bandwidth in each direction and latency, as in "
                 "450GB/s,3us, or nvlink4, "
                 "nvlink3, infiniband400, infiniband100");
  app.add_option("--budget", options.budget,
                 "Memory of a rank, as in 80GiB (default: the device's)");
  add_count(app, "--vocabulary", options.vocabulary,
            "Of the model (default: the corpus's; 257 where there is none)");
  CLI::Option* max_context = app.add_flag("--max-context", options.max_context,
                                          "Also the longest T in the budget, for each knob");
  CLI::Option* tune = app.add_flag("--tune", options.tune,
                                   "Rank the settings for the link: rings, layouts, KV heads, "
                                   "window lengths; and the first whose communication is hidden");
  app.add_flag("--measure", options.measure,
               "With --tune: run three real steps of the best settings on this machine as well")
      ->needs(tune);
  app.add_option("--corpus", options.corpus,
                 "Plan its windows, with their documents, too (default: the config's data.corpus, "
                 "where it is there)")
      ->excludes(tune);
  add_count(app, "--windows", options.windows,
            "Windows of the corpus to plan, rounded up to steps (default: one step)");
  tune->excludes(max_context)->excludes(app.get_option("--windows"));
  app.add_flag("--paper", options.paper,
               "The block-size and activation tables of the ring attention paper, by its formulas "
               "and by ours")
      ->excludes(app.get_option("CONFIG"));
  app.add_flag("--calibrate", options.calibrate,
               "Measure this machine first (ten to forty seconds); kept for later plans");
  add_json(app, options.format);
  app.get_option("--json")->excludes(app.get_option("--paper"));
  app.footer(
      "The trainer's own step runs on a device that computes nothing, over a ring that sends "
      "nothing: bytes of memory\n"
      "and of messages are exact, on every rank. Times come from measured or published rates.\n"
      "Examples:\n"
      "  ringlet plan configs/quickstart.toml --calibrate\n"
      "  ringlet plan configs/quickstart.toml --tune --link 20MB/s,50us --measure\n"
      "  ringlet plan configs/quickstart.toml --corpus corpora/books.h5 --windows 100\n"
      "  ringlet plan configs/long-64k.toml --max-context --budget 2GiB\n"
      "  ringlet plan configs/curriculum.toml --stage 1\n"
      "  ringlet plan configs/long-64k.toml --ranks 1024 --seq-len 16777216 --set model.layers=32 "
      "--device h200");
}

void add_verify(CLI::App& main, VerifyOptions& options) {
  CLI::App& app =
      *main.add_subcommand("verify", "Prove that the ring computes what one device computes");
  app.add_option("CONFIG", options.config,
                 "A config: its heads, masks and ring, and its own size where that is quick "
                 "(default: all kinds)");
  add_settings(app, options.overrides);
  add_count(app, "--stage", options.stage,
            "Of a config with [[stage]]: the one to verify (default: the longest)");
  app.add_option("--ranks", options.ranks, "Ring sizes, as in 1,2,3,4,8")->delimiter(',');
  app.add_option_function<std::vector<std::string>>(
         "--lengths",
         [&options](const std::vector<std::string>& lengths) {
           for (const std::string& length : lengths) options.lengths.push_back(parse_tokens(length));
         },
         "Lengths in tokens, as in 61,1000; 16k is 16,384")
      ->delimiter(',');
  app.add_flag_callback(
      "--quick", [&options] { options.extent = VerifyExtent::quick; },
      "Seconds instead of minutes");
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda");
  add_key(app, "--dtype", "run.dtype", options.overrides, "Of activations: f32 or bf16");
  add_json(app, options.format);
  app.footer(
      "Losses of every position, attention outputs and LSE, every gradient and the weights after "
      "one step are\n"
      "compared with a dense model in double precision; a token is changed to see that it is felt "
      "only where it\n"
      "may be. Lengths too long for the dense model are checked by random rows, recomputed in "
      "double. Exit\n"
      "code 0: every case passed.\n"
      "Examples:\n"
      "  ringlet verify --quick\n"
      "  ringlet verify configs/quickstart.toml\n"
      "  ringlet verify --ranks 5,7 --lengths 13,1000");
}

void add_explain(CLI::App& main, ExplainOptions& options) {
  CLI::App& app = *main.add_subcommand(
      "explain", "Draw the ring: who holds, computes and sends what, hop by hop");
  app.add_option("CONFIG", options.config,
                 "A config to take ranks, ring, length, layout, window and heads from");
  add_settings(app, options.overrides);
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  add_count(app, "--stage", options.stage,
            "Of a config with [[stage]]: the one to draw (default: the longest)");
  add_choice<std::vector<Layout>>(
      app, "--layout", options.layouts,
      {{"contiguous", {Layout::contiguous}},
       {"zigzag", {Layout::zigzag}},
       {"striped", {Layout::striped}},
       {"all", {Layout::contiguous, Layout::zigzag, Layout::striped}}},
      "Who holds which positions (default: the config's; all without a config)");
  app.add_option("--documents", options.documents,
                 "Lengths of the window's documents in tokens, in their order, as in 3000,500,16k; "
                 "what they leave of the "
                 "window is one more (default: one document)");
  add_tokens_key(app, "--window", "data.window", options.overrides,
                 "Sliding window: a token sees at most so many; 0: all");
  app.add_option("--svg", options.svg, "Also draw a picture into this file");
  add_json(app, options.format);
  app.footer(
      "Computed from the layout, the schedule and the mask of the trainer itself. A block is what "
      "one rank holds: its keys\n"
      "and values go round the ring, one rank further at each hop, and visit those whose queries "
      "see them. The work is the\n"
      "pairs of a query and a key that it sees. The JSON has every rank and hop, and for rings of "
      "up to 64 every rank at\n"
      "every hop.\n"
      "Examples:\n"
      "  ringlet explain --ranks 4 --seq-len 4k\n"
      "  ringlet explain --ranks 8 --seq-len 64k --layout zigzag --documents 3000,500,16k --svg "
      "ring.svg\n"
      "  ringlet explain configs/long-64k.toml --layout all --window 4k");
}

void add_profile(CLI::App& main, ProfileOptions& options) {
  CLI::App& app = *main.add_subcommand(
      "profile", "Trace a few steps and tell what does not hide behind compute");
  app.add_option("CONFIG", options.config, "A config, such as configs/quickstart.toml")->required();
  app.add_option("-o,--output", options.output, "The folder of the traces, which is not there yet")
      ->required();
  add_settings(app, options.overrides);
  add_count(app, "--stage", options.stage,
            "Of a config with [[stage]]: the one to profile (default: the longest)");
  add_count(app, "--steps", options.steps, "Steps to measure", 1, kMostProfiledSteps);
  add_count(app, "--warmup", options.warmup, "Steps before them, not measured", 1,
            kMostProfiledSteps);
  add_key(app, "--ranks", "run.ranks", options.overrides, "Ranks in all");
  add_key(app, "--ring", "run.ring", options.overrides, "Ranks of one ring");
  add_key(app, "--threads-per-rank", "run.threads_per_rank", options.overrides,
          "Threads that compute for each rank (default: the cores, shared out)");
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window, over the whole ring; 16k is 16,384");
  add_key(app, "--link", "run.link", options.overrides,
          "Emulate a link between the ranks, as in 1GB/s,50us");
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda");
  add_json(app, options.format);
  app.footer(
      "Trains as `ringlet train` does, on the config's corpus, or on made-up text where there is "
      "none; saves nothing.\n"
      "FOLDER/rank_0.json, rank_1.json, ... are read by Holistic Trace Analysis; "
      "FOLDER/perfetto/all_ranks.json shows\n"
      "all ranks and their messages in ui.perfetto.dev. hidden: share of the time that messages "
      "travel in which the rank\n"
      "computes. exposed: the rank stands still for a message; late: before the message began to "
      "travel.\n"
      "Examples:\n"
      "  ringlet profile configs/quickstart.toml --steps 3 -o traces/quickstart\n"
      "  ringlet profile configs/quickstart.toml --ranks 2 --link 20MB/s,50us -o traces/slow-link");
}

void add_study(CLI::App& main, StudyOptions& options) {
  CLI::App& app = *main.add_subcommand(
      "study", "Train variants of a config side by side, and tell what differs");
  std::string names;
  for (const StudyKind& kind : study_kinds())
    names += (names.empty() ? "" : ", ") + std::string(kind.name);
  app.add_option("NAME", options.name, names)->required()->check([](const std::string& name) {
    study_named(name);  // a UsageError that lists them, whatever else is wrong
    return std::string();
  });
  app.add_option("CONFIG", options.config,
                 "A config with a validation corpus, such as configs/quickstart.toml")
      ->required();
  app.add_option("-o,--output", options.folder,
                 "Folder of the study; the same command goes on with it")
      ->required();
  add_settings(app, options.overrides);
  add_tokens_key(app, "--seq-len", "run.seq_len", options.overrides,
                 "Tokens of a window; 16k is 16,384");
  add_count(app, "--steps", options.steps,
            "Steps of each variant (default: train.steps, in context and rope-base half, in ring a tenth)");
  app.add_option("--tokens", options.tokens, "The same in tokens, as in 2M")
      ->excludes(app.get_option("--steps"));
  add_count(app, "--seeds", options.seeds,
            "Train each variant with so many seeds; a folder can be given more later", 1, 1000);
  app.add_flag_callback(
      "--large", [&options] { options.size = StudySize::large; },
      "Longer windows and four times the tokens");
  add_key(app, "--device", "run.device", options.overrides, "What computes: cpu or cuda");
  add_json(app, options.format);
  app.footer(studies_text() +
             "\nEach variant is a run of `ringlet train` in FOLDER/runs, and is scored on the same "
             "validation tokens at its end.\n"
             "Ctrl-C or SIGTERM saves; the same command then goes on within that run, repeats none "
             "that is done, and tries again\n"
             "what failed. study.csv, study.json and report.html have everything. The error of a result is that of the text, and with "
             "--seeds that of the training too.");
}

void add_report(CLI::App& main, ReportOptions& options) {
  CLI::App& app = *main.add_subcommand(
      "report", "Draw runs, side by side, and studies: one page of plots and tables");
  app.add_option("FOLDER", options.folders, "Folders of runs, as runs/NAME, and of studies")
      ->required();
  app.add_option("-o,--output", options.output,
                 "The page, NAME.html; each plot beside it as .svg (default: report.html in the "
                 "only folder, or here)");
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

}  // namespace ringlet
