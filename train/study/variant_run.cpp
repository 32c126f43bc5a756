#include "train/study/variant_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "kernels/check.h"

namespace ringlet {
namespace {

using Json = nlohmann::ordered_json;

constexpr LogKind kVariantsLog{.file = "variants.jsonl",
                               .format = "ringlet_variants",
                               .version = 1,
                               .maker = "`ringlet study NAME CONFIG.toml -o DIR`",
                               .entry = "a run of a variant"};
constexpr std::array kRunStatuses{"done", "impossible", "failed"};

struct BlockField {
  const char* name;
  BlockedLoss VariantRun::*value;
};
constexpr std::array kBlockFields{BlockField{"all", &VariantRun::all},
                                  BlockField{"first_quarter", &VariantRun::first_block_quarter},
                                  BlockField{"last_quarter", &VariantRun::last_block_quarter}};

struct CurveField {
  const char* name;
  LossCurve VariantRun::*value;
};
constexpr std::array kCurveFields{CurveField{"by_position", &VariantRun::by_position},
                                  CurveField{"by_distance", &VariantRun::by_distance}};

struct CurveColumn {
  const char* name;
  std::vector<double> LossCurve::*values;
};
constexpr std::array kCurveColumns{
    CurveColumn{"first", &LossCurve::first}, CurveColumn{"last", &LossCurve::last},
    CurveColumn{"count", &LossCurve::count}, CurveColumn{"mean", &LossCurve::mean},
    CurveColumn{"standard_error", &LossCurve::standard_error}};

Json finite(double value) { return std::isfinite(value) ? Json(value) : Json(); }

std::vector<double> numbers_of(const Json& list) {
  std::vector<double> numbers;
  for (const Json& value : list) numbers.push_back(value.is_null() ? NAN : value.get<double>());
  return numbers;
}

Json list_of(const std::vector<double>& numbers) {
  Json list = Json::array();
  for (const double value : numbers) list.push_back(finite(value));
  return list;
}

VariantRun run_from(const Json& json) {
  VariantRun run;
  run.variant = json.at("variant");
  run.seed = json.at("seed");
  const auto status = std::ranges::find(kRunStatuses, json.at("status").get<std::string>());
  if (status == kRunStatuses.end()) throw Error("a status that is not known");
  run.status = RunStatus(status - kRunStatuses.begin());
  run.reason = json.at("reason");
  run.layout = json.at("layout");
  run.mask = json.at("mask");
  for (const RunField& field : run_fields()) {
    const Json& value = json.at(field.name);
    if (!value.is_null()) run.*field.value = value;
  }
  for (const BlockField& field : kBlockFields) {
    const Json& blocks = json.at("blocks").at(field.name);
    (run.*field.value).tokens = numbers_of(blocks.at("tokens"));
    (run.*field.value).losses = numbers_of(blocks.at("losses"));
    if ((run.*field.value).tokens.size() != (run.*field.value).losses.size())
      throw Error("blocks without their losses");
  }
  for (const CurveField& field : kCurveFields) {
    for (const CurveColumn& column : kCurveColumns) {
      (run.*field.value).*column.values = numbers_of(json.at(field.name).at(column.name));
      if (((run.*field.value).*column.values).size() != (run.*field.value).first.size())
        throw Error("a curve with holes");
    }
  }
  run.several_documents = json.at("several_documents");
  if (run.status == RunStatus::done && (!(run.all.token_count() > 0) || !(run.steps >= 1))) {
    throw Error("a run without its numbers");
  }
  return run;
}

/// A run that failed is tried again, and the last line of it counts.
void put_run(std::vector<VariantRun>& runs, VariantRun run) {
  const auto earlier = std::ranges::find_if(runs, [&](const VariantRun& other) {
    return other.variant == run.variant && other.seed == run.seed;
  });
  if (earlier != runs.end()) runs.erase(earlier);
  runs.push_back(std::move(run));
}

}  // namespace

const char* name_of(RunStatus status) { return kRunStatuses[size_t(status)]; }

std::string VariantRun::folder_name(const std::string& variant, int64_t seed, int64_t first_seed) {
  return seed == first_seed ? variant : fmt::format("{}_seed_{}", variant, seed);
}

std::span<const RunField> run_fields() {
  static constexpr std::array kFields{
      RunField{"seq_len", &VariantRun::seq_len},
      RunField{"ranks", &VariantRun::ranks},
      RunField{"rope_base", &VariantRun::rope_base},
      RunField{"steps", &VariantRun::steps},
      RunField{"tokens", &VariantRun::tokens},
      RunField{"loss", &VariantRun::loss},
      RunField{"loss_standard_error", &VariantRun::loss_error},
      RunField{"loss_first_quarter", &VariantRun::first_quarter},
      RunField{"loss_last_quarter", &VariantRun::last_quarter},
      RunField{"loss_last_quarter_standard_error", &VariantRun::last_quarter_error},
      RunField{"in_context_score", &VariantRun::in_context_score},
      RunField{"in_context_standard_error", &VariantRun::in_context_error},
      RunField{"step_ms", &VariantRun::step_ms},
      RunField{"step_ms_p10", &VariantRun::step_ms_p10},
      RunField{"step_ms_p90", &VariantRun::step_ms_p90},
      RunField{"tokens_per_second", &VariantRun::tokens_per_second},
      RunField{"bubble_percent", &VariantRun::bubble_percent},
      RunField{"peak_bytes", &VariantRun::peak_bytes},
      RunField{"sent_bytes", &VariantRun::sent_bytes},
      RunField{"step_loss_difference", &VariantRun::step_loss_difference},
  };
  return kFields;
}

Json to_json(const VariantRun& run) {
  Json json{{"variant", run.variant}, {"seed", run.seed},     {"status", name_of(run.status)},
            {"reason", run.reason},   {"layout", run.layout}, {"mask", run.mask}};
  for (const RunField& field : run_fields()) json[field.name] = finite(run.*field.value);
  for (const BlockField& field : kBlockFields) {
    json["blocks"][field.name] = {{"tokens", list_of((run.*field.value).tokens)},
                                  {"losses", list_of((run.*field.value).losses)}};
  }
  for (const CurveField& field : kCurveFields) {
    for (const CurveColumn& column : kCurveColumns) {
      json[field.name][column.name] = list_of((run.*field.value).*column.values);
    }
  }
  json["several_documents"] = run.several_documents;
  return json;
}

std::string to_csv(std::span<const VariantRun> runs) {
  std::string text = "variant,seed,status,reason,layout,mask";
  for (const RunField& field : run_fields()) text += std::string(",") + field.name;
  text += '\n';
  for (const VariantRun& run : runs) {
    text += fmt::format("{},{},{},{},{},{}", run.variant, run.seed, name_of(run.status),
                        run.reason.empty() ? "" : csv_text(run.reason), run.layout, run.mask);
    for (const RunField& field : run_fields()) {
      const double value = run.*field.value;
      text += std::isfinite(value) ? fmt::format(",{}", value) : ",";
    }
    text += '\n';
  }
  return text;
}

std::filesystem::path variants_path(const std::filesystem::path& folder) {
  return folder / kVariantsLog.file;
}

RunsOfStudy read_variants(const std::filesystem::path& folder) {
  RunsOfStudy study;
  study.settings = read_log(folder, kVariantsLog,
                            [&](const Json& line) { put_run(study.runs, run_from(line)); });
  return study;
}

VariantsFile::VariantsFile(const std::filesystem::path& folder, const StudySettings& settings)
    : log_(folder, kVariantsLog, settings,
           [this](const Json& line) { put_run(runs_, run_from(line)); }) {}

bool VariantsFile::is_settled(const std::string& variant, int64_t seed) const {
  return std::ranges::any_of(runs_, [&](const VariantRun& run) {
    return run.variant == variant && run.seed == seed && run.status != RunStatus::failed;
  });
}

void VariantsFile::append(const VariantRun& run) {
  log_.append(to_json(run));
  put_run(runs_, run);
}

}  // namespace ringlet
