#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "kernels/comm/threads.h"
#include "kernels/random.h"
#include "train/checkpoint.h"
#include "train/safetensors.h"

namespace ringlet::test {

/// A folder of its own in memory (where the system has one: fsync is free there), deleted at the
/// end.
class ScratchFolder {
 public:
  ScratchFolder() {
    const bool in_memory = ::access("/dev/shm", W_OK) == 0;
    std::string name =
        (in_memory ? std::filesystem::path("/dev/shm") : std::filesystem::temp_directory_path()) /
        "ringlet-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw Error("no scratch folder");
    path_ = name;
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// A world of one that starts no thread, for processes that are to be traced or killed.
class OneRank : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Event exchange(std::span<const Message>, std::span<const Message>, Event) override { return {}; }
  Event all_reduce(const Tensor&, Event) override { return {}; }
  Event reduce_scatter(const Tensor&, const Tensor&, Event) override { return {}; }
  Event all_gather(const Tensor&, const Tensor&, Event) override { return {}; }
  Event broadcast(const Tensor&, int, Event) override { return {}; }
  void barrier() override {}
  std::unique_ptr<Comm> split(int) override { return std::make_unique<OneRank>(); }
};

/// A small model's whole state, a pure function of the step.
struct CheckpointCase {
  CheckpointInfo info;
  std::vector<std::vector<float>> weights, first, second;  // one per parameter
};

inline CheckpointCase make_case(int64_t step, int world = 1) {
  CheckpointCase model;
  CheckpointInfo& info = model.info;
  info.step = step;
  info.tokens = step * 1000;
  info.seed = 0xfedcba9876543210u;
  info.cursor = step * 7;
  info.counters = {{"skipped_steps", 3}, {"epochs", step}};
  info.config_toml = "[model]\nname = \"größer\"\n";
  info.corpus_fingerprint = "0123456789abcdef";
  info.tokenizer_name = "byte";
  info.tokenizer_hash = "feedbeef";
  info.world = world;
  info.layout = "zigzag";
  info.parameters = {
      {"embedding.weight", {17, 5}}, {"norm.weight", {11}}, {"head.weight", {3, 4, 2}}};
  for (const ParameterShape& parameter : info.parameters) {
    const size_t size = static_cast<size_t>(element_count(parameter.shape).value());
    int stream = 0;
    for (auto* values : {&model.weights, &model.first, &model.second}) {
      const CounterRandom random(static_cast<uint64_t>(step * 3 + stream++),
                                 hash_name(parameter.name));
      values->emplace_back(size);
      for (size_t i = 0; i < size; ++i) values->back()[i] = static_cast<float>(random.normal(i));
    }
  }
  return model;
}

inline std::vector<NamedWeights> weights_of(const CheckpointCase& model) {
  std::vector<NamedWeights> weights;
  for (size_t p = 0; p < model.weights.size(); ++p) {
    weights.push_back({model.info.parameters[p].name, model.weights[p]});
  }
  return weights;
}

/// First element of each rank's share of `size` elements: uneven, some ranks with nothing; `world`
/// + 1 bounds.
inline std::vector<size_t> uneven_bounds(size_t size, int world, uint64_t seed) {
  std::vector<size_t> bounds{0, size};
  const CounterRandom random(seed, 5);
  for (int rank = 1; rank < world; ++rank)
    bounds.push_back(random.bits(uint64_t(rank)) % (size + 1));
  std::sort(bounds.begin(), bounds.end());
  return bounds;
}

inline std::vector<Shard> shards_of(const CheckpointCase& model, int rank, int world) {
  std::vector<Shard> shards;
  for (size_t p = 0; p < model.first.size(); ++p) {
    const auto bounds = uneven_bounds(model.first[p].size(), world, p);
    const size_t begin = bounds[size_t(rank)], count = bounds[size_t(rank) + 1] - begin;
    shards.push_back({model.info.parameters[p].name, static_cast<int64_t>(begin),
                      std::span(model.first[p]).subspan(begin, count),
                      std::span(model.second[p]).subspan(begin, count)});
  }
  return shards;
}

inline void save_alone(const std::filesystem::path& checkpoints, const CheckpointCase& model,
                       int keep_last = 2) {
  OneRank world;
  Trace trace;
  save_checkpoint(checkpoints, model.info, weights_of(model), shards_of(model, 0, 1), {keep_last},
                  {world, trace});
}

inline void save_on_ranks(const std::filesystem::path& checkpoints, const CheckpointCase& model,
                          int keep_last = 2) {
  const int ranks = model.info.world;
  run_ranks({.ranks = ranks}, [&](Comm& world, Trace& trace) {
    save_checkpoint(checkpoints, model.info, weights_of(model),
                    shards_of(model, world.rank(), ranks), {keep_last}, {world, trace});
  });
}

inline bool equal_bits(std::span<const float> a, std::span<const float> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y);
  });
}

/// Weights, and moments as `world` other ranks read them, bit for bit.
inline bool holds(const Checkpoint& checkpoint, const CheckpointCase& model, int world = 1) {
  bool equal = checkpoint.info().step == model.info.step;
  for (size_t p = 0; p < model.weights.size(); ++p) {
    const std::string& name = model.info.parameters[p].name;
    std::vector<float> weights(model.weights[p].size());
    checkpoint.read_weights(name, weights);
    equal = equal && equal_bits(weights, model.weights[p]);
    const auto bounds = uneven_bounds(model.first[p].size(), world, 100 + p);
    for (size_t rank = 0; rank + 1 < bounds.size(); ++rank) {
      const size_t begin = bounds[rank], count = bounds[rank + 1] - begin;
      std::vector<float> first(count), second(count);
      checkpoint.read_moments(name, static_cast<int64_t>(begin), first, second);
      equal = equal && equal_bits(first, std::span(model.first[p]).subspan(begin, count)) &&
              equal_bits(second, std::span(model.second[p]).subspan(begin, count));
    }
  }
  return equal;
}

/// The step of the newest whole checkpoint if it is bit for bit what make_case says, else -1.
inline int64_t newest_step(const std::filesystem::path& checkpoints) {
  std::vector<Skipped> skipped;
  const auto checkpoint = newest_whole_checkpoint(checkpoints, skipped);
  if (!checkpoint) return -1;
  const int64_t step = checkpoint->info().step;
  return holds(*checkpoint, make_case(step)) ? step : -1;
}

/// The names in a folder, sorted.
inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace ringlet::test
