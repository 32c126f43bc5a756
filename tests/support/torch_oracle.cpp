#include "tests/support/torch_oracle.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "kernels/check.h"
#include "train/verify/verify_problem.h"

namespace ringlet::test {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr int kNoTorch = 77, kNoCommand = 127;

/// A folder that goes when the scope ends.
struct TemporaryFolder {
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "ringlet-oracle-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr, "no temporary folder ", name);
    path = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  fs::path path;
};

std::string contents_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

json case_as_json(const OracleCase& input) {
  const GptConfig& config = input.config;
  const AdamW& adamw = input.adamw;
  return {{"config",
           {{"layers", config.layers},
            {"heads", config.heads.heads},
            {"kv_heads", config.heads.kv_heads},
            {"head_dim", config.heads.head_dim},
            {"tied_head", config.tied_head},
            {"qk_norm", config.qk_norm},
            {"norm_epsilon", double(config.norm_epsilon)},
            {"rope_base", config.rope_base}}},
          {"tokens", input.tokens},
          {"labels", input.labels},
          {"document_starts", input.mask.document_starts},
          {"window", input.mask.window},
          {"loss_scale", input.loss_scale},
          {"adamw",
           {{"learning_rate", double(adamw.learning_rate)},
            {"beta1", double(adamw.beta1)},
            {"beta2", double(adamw.beta2)},
            {"epsilon", double(adamw.epsilon)},
            {"weight_decay", double(adamw.weight_decay)}}},
          {"clip", input.clip},
          {"steps", input.steps},
          {"dtype", input.dtype}};
}

void write_weights(const OracleCase& input, const fs::path& path) {
  json header;
  std::string data;
  for (const ParameterShape& shape : parameter_shapes(input.config)) {
    const std::vector<float>& values = input.parameters.at(shape.name);
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    header[shape.name] = {
        {"dtype", "F32"}, {"shape", shape.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof length);
  file << text << data;
  CHECK(file.flush().good(), "cannot write ", path.string());
}

/// All tensors of a file of float64.
Values read_results(const fs::path& path) {
  const std::string raw = contents_of(path);
  uint64_t length = 0;
  CHECK(raw.size() > sizeof length, path.string(), " is too short");
  std::memcpy(&length, raw.data(), sizeof length);
  Values tensors;
  const json header = json::parse(raw.substr(sizeof length, length));
  for (const auto& [name, entry] : header.items()) {
    const size_t begin = entry.at("data_offsets").at(0), end = entry.at("data_offsets").at(1);
    std::vector<double>& values = tensors[name];
    values.resize((end - begin) / sizeof(double));
    CHECK(entry.at("dtype") == "F64" && sizeof length + length + end <= raw.size(), name);
    std::memcpy(values.data(), raw.data() + sizeof length + length + begin, end - begin);
  }
  return tensors;
}

/// The exit code of the oracle; its words are in FOLDER/log.
int run_python(const std::string& python, const fs::path& folder) {
  const fs::path script = fs::path(RINGLET_SOURCE_DIR) / "tests/peers/torch_oracle.py";
  const std::string command = fmt::format("'{}' '{}' '{}' > '{}' 2>&1", python, script.string(),
                                          folder.string(), (folder / "log").string());
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::vector<std::string> pythons() {
  const char* chosen = std::getenv("RINGLET_PYTHON");
  if (chosen != nullptr) return {chosen};
  return {"python3", "/usr/bin/python3"};
}

OracleResult collect(const OracleCase& input, const fs::path& folder) {
  OracleResult result;
  Values tensors = read_results(folder / "results.safetensors");
  const json summary = json::parse(contents_of(folder / "results.json"));
  summary.at("losses").get_to(result.losses);
  summary.at("norms").get_to(result.norms);
  result.first.loss = result.losses.at(0);
  result.first.losses = tensors.at("losses");
  result.first.d_embedding_output = tensors.at("d_embedding_output");
  for (int64_t layer = 0; layer < input.config.layers; ++layer) {
    result.first.layers.push_back({tensors.at(fmt::format("attention_output.{}", layer)),
                                   tensors.at(fmt::format("lse.{}", layer)), {}, {}, {}});
  }
  for (const ParameterShape& shape : parameter_shapes(input.config)) {
    result.first.gradients[shape.name] = tensors.at("gradient." + shape.name);
    result.weights[shape.name] = tensors.at("weight." + shape.name);
  }
  return result;
}

}  // namespace

ReferenceInput OracleCase::reference_input() const {
  ReferenceInput input{config, widened(parameters), tokens, labels, {}, loss_scale};
  for (int64_t i = 0; i < int64_t(tokens.size()); ++i) {
    input.first_visible.push_back(mask.first_visible(i));
  }
  return input;
}

std::optional<OracleResult> run_oracle(const OracleCase& input) {
  const TemporaryFolder folder;
  std::ofstream(folder.path / "case.json") << case_as_json(input);
  write_weights(input, folder.path / "weights.safetensors");
  for (const std::string& python : pythons()) {
    const int code = run_python(python, folder.path);
    if (code == 0) return collect(input, folder.path);
    CHECK(code == kNoTorch || code == kNoCommand, python,
          " failed: ", contents_of(folder.path / "log"));
  }
  return std::nullopt;
}

}  // namespace ringlet::test
