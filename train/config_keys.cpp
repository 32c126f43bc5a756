#include "train/config_keys.h"

#include <algorithm>
#include <array>

#include "kernels/op_shapes.h"

namespace ringlet {
namespace {

constexpr std::array<std::string_view, 2> kOrders{"shuffled", "sequential"};
constexpr std::array<std::string_view, 2> kMasks{"document", "causal"};
constexpr std::array<std::string_view, 3> kLayouts{"contiguous", "zigzag", "striped"};
constexpr std::array<std::string_view, 2> kComms{"threads", "nccl"};
constexpr std::array<std::string_view, 2> kDevices{"cpu", "cuda"};
constexpr std::array<std::string_view, 2> kDtypes{"f32", "bf16"};
constexpr std::array<std::string_view, 2> kVerify{"start", "off"};
constexpr std::array<std::string_view, 4> kPolicies{"none", "selective", "full", "auto"};
constexpr std::array<std::string_view, 3> kSchedules{"cosine", "constant", "wsd"};

constexpr int64_t kMany = int64_t(1) << 48;  // products with sizes of the model stay inside int64
constexpr double kTiny = std::numeric_limits<double>::min();
constexpr double kHuge = 1e300;

template <class Enumeration>
ChoiceKey choice(Enumeration& value, std::span<const std::string_view> words) {
  static_assert(sizeof(Enumeration) == 1);
  return {reinterpret_cast<uint8_t*>(&value), words};
}

// The keys that a stage has too.
ConfigKey rope_base_key(double& value) {
  return {"model.rope_base", NumberKey{&value, 1.001, kHuge, "auto"}};
}
ConfigKey seq_len_key(int64_t& value) {
  return {"run.seq_len", IntegerKey{&value, 1, int64_t(1) << 31}};
}
ConfigKey recompute_key(Recompute& value) { return {"memory.recompute", choice(value, kPolicies)}; }
ConfigKey head_chunk_key(int64_t& value) {
  return {"memory.head_chunk", IntegerKey{&value, 1, kMany}};
}
ConfigKey mlp_chunk_key(int64_t& value) {
  return {"memory.mlp_chunk", IntegerKey{&value, 1, kMany}};
}
ConfigKey batch_windows_key(int64_t& value) {
  return {"train.batch_windows", IntegerKey{&value, 1, 1 << 20}};
}
ConfigKey learning_rate_key(double& value) {
  return {"train.learning_rate", NumberKey{&value, kTiny, 1e3}};
}
ConfigKey final_learning_rate_key(double& value) {
  return {"train.final_learning_rate", NumberKey{&value, 0, 1e3}};
}
ConfigKey schedule_key(ScheduleShape& value) {
  return {"train.schedule", choice(value, kSchedules)};
}
ConfigKey warmup_steps_key(int64_t& value) {
  return {"train.warmup_steps", IntegerKey{&value, 0, kMany}};
}
ConfigKey decay_steps_key(int64_t& value) {
  return {"train.decay_steps", IntegerKey{&value, 1, kMany}};
}

std::vector<ConfigKey> model_keys(Config::Model& model) {
  return {
      {"model.layers", IntegerKey{&model.layers, 1, 4096}},
      {"model.width", IntegerKey{&model.width, 1, 1 << 20}},
      {"model.heads", IntegerKey{&model.heads, 1, 4096}},
      {"model.kv_heads", IntegerKey{&model.kv_heads, 1, 4096}},
      {"model.head_dim", IntegerKey{&model.head_dim, 8, shapes::kMaxHeadDim}},
      {"model.mlp_width", IntegerKey{&model.mlp_width, 1, 1 << 20}},
      {"model.tied_head", FlagKey{&model.tied_head}},
      {"model.qk_norm", FlagKey{&model.qk_norm}},
      {"model.norm_epsilon", NumberKey{&model.norm_epsilon, 1e-30, 0.1}},
      rope_base_key(model.rope_base),
  };
}

std::vector<ConfigKey> data_keys(Config::Data& data) {
  return {
      {"data.corpus", TextKey{&data.corpus}},
      {"data.validation", TextKey{&data.validation}},
      {"data.order", choice(data.order, kOrders)},
      {"data.mask", choice(data.mask, kMasks)},
      {"data.window", IntegerKey{&data.window, 0, kMany}},
  };
}

std::vector<ConfigKey> run_keys(Config::Run& run) {
  return {
      {"run.name", TextKey{&run.name}},
      {"run.folder", TextKey{&run.folder}},
      {"run.seed", IntegerKey{&run.seed, 0, std::numeric_limits<int64_t>::max()}},
      seq_len_key(run.seq_len),
      {"run.ranks", IntegerKey{&run.ranks, 1, 1024}},
      {"run.ring", IntegerKey{&run.ring, 0, 1024}},
      {"run.threads_per_rank", IntegerKey{&run.threads_per_rank, 0, 1024}},
      {"run.pin_threads", FlagKey{&run.pin_threads}},
      {"run.layout", choice(run.layout, kLayouts)},
      {"run.pieces", IntegerKey{&run.pieces, 0, 256}},
      {"run.timeout_seconds", NumberKey{&run.timeout_seconds, 0.01, 1e6}},
      {"run.link", TextKey{&run.link}},
      {"run.comm", choice(run.comm, kComms)},
      {"run.address", TextKey{&run.address}},
      {"run.nccl_max_ctas", IntegerKey{&run.nccl_max_ctas, 0, 64}},
      {"run.device", choice(run.device, kDevices)},
      {"run.dtype", choice(run.dtype, kDtypes)},
      {"run.verify", IntegerOrWordKey{&run.verify, 1, kMany, kVerify}},
  };
}

std::vector<ConfigKey> memory_keys(Config::Memory& memory) {
  return {
      recompute_key(memory.recompute),
      {"memory.offload", TextKey{&memory.offload}},
      {"memory.zero_stage", IntegerKey{&memory.zero_stage, 1, 2}},
      head_chunk_key(memory.head_chunk),
      mlp_chunk_key(memory.mlp_chunk),
      {"memory.arena_bytes", IntegerKey{&memory.arena_bytes, 0, kMany}},
  };
}

std::vector<ConfigKey> train_keys(Config::Train& train) {
  return {
      {"train.steps", IntegerKey{&train.steps, 1, kMany}},
      batch_windows_key(train.batch_windows),
      learning_rate_key(train.learning_rate),
      final_learning_rate_key(train.final_learning_rate),
      schedule_key(train.schedule),
      warmup_steps_key(train.warmup_steps),
      decay_steps_key(train.decay_steps),
      {"train.beta1", NumberKey{&train.beta1, 0, 0.99999}},
      {"train.beta2", NumberKey{&train.beta2, 0, 0.99999}},
      {"train.epsilon", NumberKey{&train.epsilon, 1e-30, 1}},
      {"train.weight_decay", NumberKey{&train.weight_decay, 0, 1e3}},
      {"train.clip_norm", NumberKey{&train.clip_norm, 0, kHuge}},
      {"train.max_skipped_steps", IntegerKey{&train.max_skipped_steps, 1, kMany}},
      {"train.eval_every", IntegerKey{&train.eval_every, 0, kMany}},
      {"train.eval_windows", IntegerKey{&train.eval_windows, 1, kMany}},
      {"train.log_every", IntegerKey{&train.log_every, 1, kMany}},
  };
}

std::vector<ConfigKey> checkpoint_keys(Config::Checkpoint& checkpoint) {
  return {
      {"checkpoint.every", IntegerKey{&checkpoint.every, 0, kMany}},
      {"checkpoint.keep", IntegerKey{&checkpoint.keep, 0, 1 << 20}},
  };
}

/// Levenshtein distance.
size_t distance(std::string_view left, std::string_view right) {
  std::vector<size_t> row(right.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) row[j] = j;
  for (size_t i = 0; i < left.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < right.size(); ++j) {
      const size_t replaced = diagonal + (left[i] != right[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

/// The nearest of the names; a key in the wrong group, or without one, is one mistake.
std::string nearest_of(std::string_view name, std::span<const std::string_view> names) {
  std::string_view nearest;
  size_t shortest = std::max<size_t>(2, last_part(name).size() / 3) + 1;
  for (const std::string_view known : names) {
    const size_t other_group = distance(last_part(name), last_part(known)) + 1;
    const size_t mistakes = std::min(distance(name, known), other_group);
    if (mistakes < shortest) {
      shortest = mistakes;
      nearest = known;
    }
  }
  return std::string(nearest);
}

}  // namespace

std::vector<ConfigKey> keys_of(Config& config) {
  std::vector<ConfigKey> keys;
  for (const auto& group :
       {model_keys(config.model), data_keys(config.data), run_keys(config.run),
        memory_keys(config.memory), train_keys(config.train), checkpoint_keys(config.checkpoint)}) {
    keys.insert(keys.end(), group.begin(), group.end());
  }
  return keys;
}

std::vector<ConfigKey> stage_keys_of(Config::Stage& stage) {
  return {
      {"tokens", IntegerKey{&stage.tokens, 1, kMany}},
      seq_len_key(stage.seq_len),
      rope_base_key(stage.rope_base),
      batch_windows_key(stage.batch_windows),
      learning_rate_key(stage.learning_rate),
      final_learning_rate_key(stage.final_learning_rate),
      schedule_key(stage.schedule),
      warmup_steps_key(stage.warmup_steps),
      decay_steps_key(stage.decay_steps),
      recompute_key(stage.recompute),
      head_chunk_key(stage.head_chunk),
      mlp_chunk_key(stage.mlp_chunk),
  };
}

std::string_view key_of_stage(std::string_view name) { return last_part(name); }

void copy_values(const std::vector<ConfigKey>& from, const std::vector<ConfigKey>& to) {
  for (const ConfigKey& target : to) {
    const auto source = std::ranges::find(from, target.name, &ConfigKey::name);
    if (source == from.end()) continue;
    std::visit([&]<class Key>(const Key& key) { *key.value = *std::get<Key>(source->value).value; },
               target.value);
  }
}

std::string nearest_key(std::string_view name) {
  Config config;
  std::vector<std::string_view> names{"stage"};
  for (const ConfigKey& key : keys_of(config)) names.push_back(key.name);
  return nearest_of(name, names);
}

std::string nearest_stage_key(std::string_view name) {
  Config::Stage stage;
  std::vector<std::string_view> names;
  for (const ConfigKey& key : stage_keys_of(stage)) names.push_back(key_of_stage(key.name));
  return nearest_of(name, names);
}

}  // namespace ringlet
