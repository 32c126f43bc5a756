#pragma once

#include <functional>
#include <memory>
#include <string>

#include "data/prefetch.h"
#include "kernels/comm/traffic.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/evaluation.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/run_folder.h"
#include "train/stages.h"
#include "train/step_sums.h"
#include "train/train_step.h"
#include "train/window_share.h"

namespace ringlet {

enum class RunEnd : uint8_t { finished, interrupted, diverged };

/// What a run, or a stage of one, is made of, equal for all its ranks. Everything outlives the run.
struct TrainingRun {
  const Config& config;
  GptConfig gpt;
  const WindowReader& windows;
  const WindowReader* validation = nullptr;  // absent: no evaluation
  const Checkpoint* resume = nullptr;        // absent: from fresh weights
  RunFolder* folder = nullptr;               // absent: nothing is written
  std::string corpus_fingerprint, tokenizer_name, tokenizer_hash;
  std::function<bool()> stop_requested;      // asked once a step and evaluation; absent: never
  std::function<void(const MetricsRecord&)> report;          // on rank 0; may be absent
  std::function<void(const std::string& line)> say;          // on rank 0; may be absent
  const Config* whole =
      nullptr;  // the run's config, where `config` is its stage number `stage`; absent: it has none
  int64_t stage = 1;
};

/// What the stages of a run have in common on one rank: weights and moments, in the arena, and the
/// messages about them.
struct TrainedModel {
  TrainedModel(const TrainingRun& run, RankContext context, Comm& all_ranks);
  Traffic traffic;
  CountingComm ring, world;
  Parameters parameters;
  ShardedAdamW optimizer;
};

/// One rank of a training run: data, model, optimizer, evaluation, checkpoints, metrics, step by step.
/// Device, world, ring and layout are given: the same code trains on threads, dry, and under test.
class Trainer {
 public:
  Trainer(const TrainingRun& run, RankContext context, Comm& world, const SequenceLayout& layout);
  /// The next stage of the same run, from the state in which `before` has ended: weights and
  /// moments stay where they are. `before` is of no use afterwards.
  Trainer(const TrainingRun& run, Trainer& before, const SequenceLayout& layout);
  ~Trainer();

  /// Trains to the last step of the run or stage, or until a stop is requested; both save. Five
  /// (train.max_skipped_steps) steps in a row that are not finite end the run without saving.
  /// Collective.
  RunEnd run();

  /// One step, without evaluation, saving or reports. Collective. The record is complete on every rank.
  MetricsRecord train_step();

  const Parameters& parameters() const { return parameters_; }
  const ShardedAdamW& optimizer() const { return optimizer_; }
  int64_t steps_done() const { return step_; }  // of the whole run
  /// Was any rank asked to stop in the last step? All ranks say the same.
  bool stop_agreed() const { return stop_agreed_; }
  /// What this rank sent so far: training and evaluation.
  const Traffic& traffic() const { return traffic_; }

 private:
  Trainer(const TrainingRun& run, std::unique_ptr<TrainedModel> model, RankContext context,
          const SequenceLayout& layout);
  void start_clocks();
  /// Work that belongs to no step: its compute and waits are not counted.
  void between_steps(const std::function<void()>& work);
  bool evaluation_is_due() const;
  /// Is an evaluation due at the checkpoint's step, in a stage that is not over, that a stop or a kill has cost?
  /// Collective.
  bool owes_evaluation();
  /// Was any rank asked to stop by now? Collective.
  bool asked_to_stop();
  void load(const Checkpoint& checkpoint);
  void save();
  /// f32 weights of a whole bucket: where they are sharded, gathered into the memory of its gradients, until the next
  /// bucket's. All ranks call it.
  Tensor full_weights(const Bucket& bucket);
  void evaluate_and_report();
  void start_prefetch();
  StepWindows next_windows();
  double checked_gradient(StepWindows windows, const TrainStep::Losses& losses);
  bool apply_update(const StepSums& sums);
  MetricsRecord record_of(const StepSums& sums, int64_t tokens, double seconds) const;
  WindowShare share() const;
  void say(const std::string& line) const;
  bool leads() const { return rank_.world.rank() == 0; }
  const Config& run_config() const { return run_.whole != nullptr ? *run_.whole : config_; }
  double rate() const { return learning_rate(config_.schedule(), step_ - place_.first_step); }

  const TrainingRun& run_;
  const Config& config_;  // of the stage
  const StagePlace place_;
  StepSettings settings_;
  std::unique_ptr<TrainedModel> model_;
  Parameters& parameters_;
  ShardedAdamW& optimizer_;
  Traffic& traffic_;
  Gpt gpt_;
  ModelRank rank_;
  TrainStep train_step_;
  std::unique_ptr<Prefetcher> prefetcher_;
  int64_t step_ = 0, cursor_ = 0, tokens_ = 0;              // cursor: of the stage's windows
  int64_t updates_ = 0, skipped_ = 0, skipped_in_row_ = 0;  // counted since the run began
  double computed_before_ = 0, exposed_before_ = 0;  // seconds, milliseconds of this rank's thread
  int64_t saved_step_ = -1;
  bool stop_agreed_ = false;
};

}  // namespace ringlet
