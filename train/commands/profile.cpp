#include "train/commands/profile.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/corpus.h"
#include "kernels/check.h"
#include "kernels/random.h"
#include "train/commands/prepare.h"
#include "train/console.h"
#include "train/devices.h"
#include "train/files.h"
#include "train/machine.h"
#include "train/plan/memory_choice.h"
#include "train/profile/overlap.h"
#include "train/profile/profile.h"
#include "train/profile/trace_file.h"
#include "train/signals.h"
#include "train/stages.h"
#include "train/world.h"

namespace ringlet {
namespace {

namespace fs = std::filesystem;

/// Viewers of traces refuse more.
constexpr int64_t kLargestViewedBytes = int64_t{256} << 20;
constexpr int64_t kMadeUpWindows = 4;

/// A folder for the time of a profile.
class ScratchFolder {
 public:
  ScratchFolder() : path_((fs::temp_directory_path() / "ringlet-profile-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) fail_on_file("make a folder in", fs::temp_directory_path(), errno);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  fs::path path() const { return path_; }

 private:
  std::string path_;
};

/// One document of random letters that fills whole windows: a step's work does not depend on them.
std::string made_up_corpus(const ScratchFolder& folder, int64_t seq_len) {
  const fs::path text = folder.path() / "made-up.txt";
  OutputFile file(text);
  const CounterRandom random(1, 0);
  std::string line(size_t(seq_len), ' ');
  for (int64_t window = 0; window < kMadeUpWindows; ++window) {
    for (int64_t i = 0; i < seq_len; ++i) line[size_t(i)] = char('a' + random.bits(uint64_t(window * seq_len + i)) % 26);
    file.write(line);
  }
  file.finish();
  PrepareOptions options;
  options.input.paths = {text.string()};
  options.output = (folder.path() / "made-up.h5").string();
  prepare(options);
  return options.output;
}

/// The folder of the traces. Goes again where nothing was written.
class TraceFolder {
 public:
  explicit TraceFolder(const std::string& path) : path_(path) {
    if (std::error_code ignored; fs::exists(path_, ignored) && !fs::is_empty(path_, ignored)) {
      throw UsageError("the trace folder '" + path + "' exists", "name another one with -o, or remove it");
    }
    create_folders(path_);
  }
  ~TraceFolder() {
    std::error_code ignored;
    if (fs::is_empty(path_, ignored)) fs::remove(path_, ignored);
  }
  TraceFolder(const TraceFolder&) = delete;
  TraceFolder& operator=(const TraceFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string heading(const ProfileOptions& options, const Config& config, const std::string& text, const Devices& devices) {
  const Config::Run& run = config.run;
  const bool gpus = devices.kind() == DeviceKind::cuda;
  return fmt::format("{}: {} step{} after {} of warm-up on {}; T = {} in {} layout on {} rank{} (rings of {}), {}{}{}",
                     options.config, options.steps, options.steps == 1 ? "" : "s", options.warmup, text, run.seq_len,
                     name_of(run.layout), run.ranks, run.ranks == 1 ? "" : "s", run.ring_size(), devices.name(),
                     gpus ? "" : fmt::format(", {} cores", usable_cores()),
                     run.link.empty() ? "" : ", emulated link " + run.link);
}

void print(const ProfileOptions& options, const Config& config, const std::string& text, const Devices& devices,
           const Overlap& overlap) {
  const bool gpus = devices.kind() == DeviceKind::cuda;
  const SharedPlaces places{devices.threads_per_rank() * int(config.run.ranks), devices.worker_count(),
                            gpus ? "rank" : "thread", gpus ? "GPU" : "core"};
  const std::string waste = largest_waste(overlap, places);
  if (options.format == OutputFormat::json) {
    nlohmann::ordered_json json{{"config", options.config}, {"text", text}, {"steps", options.steps},
                                {"seq_len", config.run.seq_len}, {"layout", name_of(config.run.layout)},
                                {"ring", config.run.ring_size()}, {"device", devices.name()},
                                {"folder", options.output}};
    if (!gpus) json["threads"] = places.users;
    json[gpus ? "gpus" : "cores"] = places.places;
    json.update(to_json(overlap));
    json["largest_waste"] = waste;
    fmt::print("{}\n", json.dump());
    return;
  }
  fmt::print("{}\n\nEach hop, a step, mean over the ranks (compute, and what is sent off beside it)\n{}\n"
             "Each rank, a step\n{}{}\n{}\n\n",
             heading(options, config, text, devices), overlap_table(overlap), rank_table(overlap), slowdown_line(overlap), waste);
  fmt::print("{}/rank_*.json is for Holistic Trace Analysis, {}/perfetto/all_ranks.json for ui.perfetto.dev\n",
             options.output, options.output);
}

}  // namespace

void profile_command(const ProfileOptions& options) {
  Console console;
  const Config whole = load_config(options.config, options.overrides);
  Config config = one_stage(whole, options.stage, [&](const std::string& line) { console.say(line); });
  if (config.run.comm != CommKind::threads) {
    throw UsageError("profile runs its ranks as threads of one process", "add --set run.comm=threads");
  }
  config.run.verify = Config::Run::kVerifyOff;  // a step that is recomputed is no step to measure
  const TraceFolder folder(options.output);
  std::optional<ScratchFolder> scratch;
  if (std::error_code ignored; !fs::exists(config.data.corpus, ignored)) {
    scratch.emplace();
    console.say(fmt::format("there is no corpus '{}': profiling on made-up text", config.data.corpus));
    config.data.corpus = made_up_corpus(*scratch, config.run.seq_len);
  }
  const Corpus corpus = Corpus::open(config.data.corpus);
  const WindowReader windows(corpus, config.run.seq_len);
  const GptConfig gpt = config.gpt(corpus.vocabulary());
  gpt.validate();
  const int64_t stage = chosen_stage(whole, options.stage);
  config.memory = stage_config(resolved_recompute(whole, gpt, stage), stage).memory;
  install_signal_handlers();
  const Profile profile = record_profile(config, gpt, windows, {options.steps, options.warmup}, stop_requested);
  if (profile.stopped) return console.say("stopped as asked; no trace was written");
  const int64_t largest = write_traces(profile.recording, name_of(config.run.layout), folder.path());

  std::optional<Mask> mask;
  if (scratch || config.data.mask == MaskRule::causal) mask = Mask{{0}, config.data.window};
  Overlap overlap = overlap_of(profile.recording, mask);
  if (!config.run.link.empty()) overlap.slowdown.reset();  // what is emulated moves nothing beside the compute
  const Devices devices(config.run.device, host_threads(config.run));
  print(options, config, scratch ? "made-up text" : config.data.corpus, devices, overlap);
  if (largest > kLargestViewedBytes) {
    console.say(fmt::format("warning: a trace has {}, more than viewers take; profile fewer --steps",
                            human_bytes(double(largest))));
  }
}

}  // namespace ringlet
