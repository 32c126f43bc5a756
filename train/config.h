#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/sampler.h"
#include "model/gpt_config.h"
#include "model/parameters.h"
#include "model/sequence_layout.h"
#include "model/step.h"
#include "train/schedule.h"

namespace ringlet {

enum class MaskRule : uint8_t { document, causal };
enum class DeviceKind : uint8_t { cpu, cuda };
enum class CommKind : uint8_t { threads, nccl };
enum class ComputeDtype : uint8_t { f32, bf16 };

/// Everything that a training run is told, group by group as in the file. configs/reference.toml
/// documents every key. A value that follows from others (kUnset, kUnsetRate here) is filled in
/// when a config is read.
struct Config {
  static constexpr int64_t kUnset = 0;
  static constexpr double kUnsetRate = -1;

  struct Model {
    int64_t layers = 4, width = 128, heads = 4;
    int64_t kv_heads = kUnset, head_dim = kUnset, mlp_width = kUnset;
    bool tied_head = true, qk_norm = false;
    double norm_epsilon = 1e-6;
    double rope_base = kUnset;  // "auto" in the file
  } model;

  struct Data {
    std::string corpus, validation;
    OrderMode order = OrderMode::shuffled;
    MaskRule mask = MaskRule::document;
    int64_t window = 0;
  } data;

  struct Run {
    std::string name, folder = "runs";
    int64_t seed = 1, seq_len = 4096, ranks = 1;
    int64_t ring = 0;  // 0: all ranks; see ring_size()
    int64_t threads_per_rank = 0;  // 0: the cores, shared out (train/world.h)
    bool pin_threads = false;
    Layout layout = Layout::zigzag;
    int64_t pieces = 0;  // 0: as many as the layout needs
    double timeout_seconds = 120;
    std::string link;  // emulated between the ranks; empty: none
    CommKind comm = CommKind::threads;
    std::string address;        // host:port of rank 0, with nccl; empty: the launcher's
    int64_t nccl_max_ctas = 0;  // 0: NCCL chooses
    DeviceKind device = DeviceKind::cpu;
    ComputeDtype dtype = ComputeDtype::f32;
    static constexpr int64_t kVerifyOff = -1, kVerifyStart = 0;  // else: every so many steps
    int64_t verify = kVerifyStart;
    int64_t ring_size() const { return ring == 0 ? ranks : ring; }
    SequenceLayout sequence_layout() const { return make_layout(layout, seq_len, int(ring_size()), int(pieces)); }
    std::filesystem::path path() const { return std::filesystem::path(folder) / name; }
  } run;

  struct Memory {
    Recompute recompute = Recompute::selective;
    static constexpr std::string_view kHost = "host";
    std::string offload{};   // a folder, with GPUs kHost; empty: nothing leaves the arena
    int64_t zero_stage = 1;  // 1: the optimizer's state is sharded; 2: summed gradients too
    int64_t head_chunk = 512, mlp_chunk = 1024, arena_bytes = 0;
  } memory;

  struct Train {
    int64_t steps = 1000, batch_windows = 1;
    double learning_rate = 1e-3, final_learning_rate = kUnsetRate;
    ScheduleShape schedule = ScheduleShape::cosine;
    int64_t warmup_steps = -1, decay_steps = kUnset;
    double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1, clip_norm = 1.0;
    int64_t max_skipped_steps = 5, eval_every = 0, eval_windows = 4, log_every = 1;
  } train;

  struct Checkpoint {
    int64_t every = 100, keep = 2;
  } checkpoint;

  /// A part of the run with values of its own for these keys, [[stage]] in the file. What it does
  /// not say there it has from the rest of the config, never from the stage before.
  struct Stage {
    int64_t tokens = kUnset;
    int64_t seq_len = 0, batch_windows = 0;
    double rope_base = 0, learning_rate = 0, final_learning_rate = 0;
    ScheduleShape schedule = ScheduleShape::cosine;
    int64_t warmup_steps = 0, decay_steps = 0;
    Recompute recompute = Recompute::selective;
    int64_t head_chunk = 0, mlp_chunk = 0;
    /// `tokens`, rounded up to whole steps.
    int64_t steps() const;
  };
  std::vector<Stage>
      stages;  // train.steps is then the sum of theirs; train/stages.h cuts the config up

  ScheduleSettings schedule() const;
  StepSettings step_settings() const;
  Parameters::Gradients gradients() const;
  GptConfig gpt(int64_t vocabulary) const;
};

/// Reads a config file. `overrides` are "key=value", typed by the key, and win over the file; a run
/// without a name is named for the file. Unknown keys, values of another type and values that
/// cannot be are UsageErrors that name file, line and key.
Config load_config(const std::filesystem::path& file, std::span<const std::string> overrides = {});

/// The same for a text; `source` names it in errors.
Config parse_config(std::string_view text, std::string_view source,
                    std::span<const std::string> overrides = {});

/// The resolved config: every key, in the order of configs/reference.toml, then the stages with
/// every key of theirs (and without train.steps). parse_config reads the same config back.
std::string to_toml(const Config& config);

/// "group.key=value", as `--set` takes it, for every key in which `to` differs from `from`. Both
/// have as many stages.
std::vector<std::string> changed_settings(const Config& from, const Config& to);

/// Throws UsageError when the values of a config do not go together; parse_config has called it.
void check_config(const Config& config);

}  // namespace ringlet
