#include "train/commands/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/checkpoint.h"
#include "train/checkpoint_folder.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

/// A checkpoint in a few words, or why it is none.
Json facts_of_checkpoint(const fs::path& folder, CorpusCheck check) {
  Json facts{{"kind", "checkpoint"}, {"path", folder.string()}};
  const Checkpoint checkpoint = Checkpoint::open(folder);
  if (check == CorpusCheck::everything) checkpoint.verify();
  const CheckpointInfo& info = checkpoint.info();
  int64_t parameters = 0;
  for (const ParameterShape& shape : info.parameters) parameters += shape.size();
  facts["step"] = info.step;
  facts["tokens"] = info.tokens;
  facts["parameters"] = parameters;
  facts["ranks"] = info.world;
  facts["ring"] = info.ring;
  facts["layout"] = info.layout;
  facts["tokenizer"] = info.tokenizer_name;
  facts["corpus"] = info.corpus_fingerprint;
  facts["checked"] = check == CorpusCheck::everything ? "everything" : "sizes";
  return facts;
}

/// The last lines of training and of evaluation, without the long lists.
void add_metrics(const fs::path& file, Json& facts) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    const Json record = Json::parse(line, nullptr, false);
    if (!record.is_object()) continue;  // cut off by a kill
    Json& last = facts[record.contains("eval_loss") ? "last_evaluation" : "last_step"];
    last = Json::object();
    for (const char* key :
         {"step", "steps", "stage", "seq_len", "loss", "eval_loss", "loss_first_quarter",
          "loss_last_quarter", "in_context_score", "answer_accuracy", "answers", "tokens",
          "tokens_per_second"}) {
      if (record.contains(key)) last[key] = record[key];
    }
  }
}

Json facts_of_run(const fs::path& folder, CorpusCheck check) {
  Json facts{{"kind", "run"}, {"path", folder.string()}};
  add_metrics(folder / "metrics.jsonl", facts);
  Json& list = facts["checkpoints"] = Json::array();
  for (const StepFolder& found : step_folders(folder / "checkpoints")) {
    const fs::path& path = found.path;
    try {
      list.push_back(facts_of_checkpoint(path, check));
    } catch (const Error& error) {
      if (!fs::exists(path)) continue;  // its run has replaced it meanwhile
      list.push_back({{"path", path.string()}, {"damaged", error.what()}});
    }
  }
  return facts;
}

void expect_no_damage(const Json& checkpoints) {
  const auto damaged = std::ranges::count_if(checkpoints, [](const Json& facts) { return facts.contains("damaged"); });
  if (damaged == 0) return;
  throw Error(fmt::format("{} of {} checkpoints {} damaged", damaged, checkpoints.size(), damaged == 1 ? "is" : "are"),
              damaged == std::ssize(checkpoints) ? "none is whole: the run cannot go on; bring one back from a backup"
                                                 : "resuming takes the newest that is whole; delete the damaged ones");
}

/// "key  value" lines; a list or an object is set in beneath its key.
void print_facts(const Json& facts, const std::string& margin) {
  for (const auto& [key, value] : facts.items()) {
    if (value.is_structured()) {
      fmt::print("{}{}{}\n", margin, key, value.empty() ? "  none" : "");
      for (const Json& item : value.is_array() ? value : Json::array({value})) {
        print_facts(item, margin + "  ");
      }
    } else {
      const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
      fmt::print("{}{:<{}}  {}\n", margin, key, 20 - margin.size(), text);
    }
  }
}

}  // namespace

void inspect(const InspectOptions& options) {
  const fs::path path(options.path);
  const bool json = options.format == OutputFormat::json;
  if (!fs::exists(path)) {
    throw Error(options.path + " does not exist",
                "give a corpus, a checkpoint's folder or a run's folder");
  }
  if (!fs::is_directory(path)) {
    const CorpusReport report = inspect_corpus(options.path, options.check);
    fmt::print("{}", json ? to_json(report) + "\n" : to_text(report));
    return;
  }
  const bool run = fs::exists(path / "config.toml") || fs::exists(path / "checkpoints");
  if (!run && !fs::exists(path / "manifest.json")) {
    throw Error(options.path + " is neither a checkpoint nor a run",
                "a checkpoint has manifest.json, a run has config.toml");
  }
  const Json facts =
      run ? facts_of_run(path, options.check) : facts_of_checkpoint(path, options.check);
  if (json) {
    fmt::print("{}\n", facts.dump(-1, ' ', false, Json::error_handler_t::replace));
  } else {
    print_facts(facts, "");
  }
  if (run && options.check == CorpusCheck::everything) expect_no_damage(facts["checkpoints"]);
}

}  // namespace ringlet
