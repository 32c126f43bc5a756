#include "train/scale/cell_training.h"

#include <algorithm>

#include "data/corpus_writer.h"
#include "kernels/observed_backend.h"
#include "train/quantile.h"
#include "train/trainer.h"
#include "train/verify/ring_step.h"
#include "train/world.h"

namespace ringlet {
namespace {

constexpr int64_t kMostTimes = 20;  // as many steps as asked for

/// Time in attention and in waits for messages of the ring, of one rank.
class AttentionClock : public OpObserver {
 public:
  AttentionClock(const Trace& trace, std::unique_ptr<WorkClock> device)
      : trace_(trace), device_(std::move(device)), waited_before_(trace.exposed_wait()) {}
  void before_call(const OpCall& call) override {
    if (device_ && is_attention(call.op)) device_->begin(name_of(call.op));
  }
  void on_call(const OpCall& call, std::chrono::nanoseconds took) override {
    if (!is_attention(call.op)) return;
    if (device_) device_->end();
    else attention_ += took;
  }
  void on_wait(Event) override {
    const std::chrono::nanoseconds waited = trace_.exposed_wait();
    if (trace_.place().hop >= 0) ring_wait_ += waited - waited_before_;
    waited_before_ = waited;
  }
  /// Ends a step.
  void lap() {
    if (device_) {
      for (const auto& [begin, end] : device_->take()) attention_ += end - begin;
    }
    attention_ms.push_back(1e-6 * double(attention_.count()));
    ring_wait_ms.push_back(1e-6 * double(ring_wait_.count()));
    attention_ = ring_wait_ = {};
  }
  std::vector<double> attention_ms, ring_wait_ms;  // of each step

 private:
  const Trace& trace_;
  const std::unique_ptr<WorkClock> device_;  // absent: calls that have come back are done
  std::chrono::nanoseconds attention_{}, ring_wait_{}, waited_before_{};
};

void add(Measured& measured, const MetricsRecord& record) {
  measured.step_ms.push_back(record.step_ms);
  measured.exposed_ms.push_back(mean(record.exposed_ms));
  measured.bubble_percent.push_back(mean(record.bubble_percent));
  if (const std::optional<double> imbalance = record.imbalance()) measured.imbalance.push_back(*imbalance);
  measured.sent_bytes = record.sent_bytes;
}

bool is_enough(const Measured& measured, const StepCounts& counts) {
  const int64_t steps = std::ssize(measured.step_ms);
  double ms = 0;
  for (const double step : measured.step_ms) ms += step;
  return steps >= counts.least_steps && (ms >= 1e3 * counts.least_seconds || steps >= kMostTimes * counts.least_steps);
}

}  // namespace

MadeUpText::MadeUpText(const std::filesystem::path& folder, int64_t tokens, int64_t vocabulary)
    : path_(folder / "text.h5") {
  const std::unique_ptr<Tokenizer> ids = make_id_tokenizer("made up", vocabulary, vocabulary - 1);
  CorpusSpool spool(folder.string(), *ids);
  std::vector<int32_t> text(static_cast<size_t>(tokens));
  for (size_t i = 0; i < text.size(); ++i) text[i] = int32_t(int64_t(7 * i) % (vocabulary - 1));
  spool.append(text);
  spool.end_document("made up");
  spool.finish();
  PendingCorpus corpus(spool, {0, tokens, 0, 1}, "made up", path_.string());
  corpus.publish();
}

MadeUpText::~MadeUpText() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

Measured train_steps(const Config& config, const GptConfig& gpt, const MadeUpText& text, StepCounts counts,
                     const std::function<bool()>& stop, KeepGradient keep) {
  const Corpus corpus = Corpus::open(text.path().string());
  const WindowReader windows(corpus, config.run.seq_len);
  const TrainingRun run{config, gpt, windows, nullptr, nullptr, nullptr, corpus.fingerprint(),
                        corpus.tokenizer_name(), corpus.tokenizer_hash(), nullptr, nullptr, nullptr};
  const SequenceLayout layout = config.run.sequence_layout();
  const auto ranks = size_t(config.run.ranks);
  Measured measured;  // ranks write their own places
  measured.attention_ms = measured.ring_wait_ms = std::vector<double>(ranks);
  measured.peak_bytes.resize(ranks);
  if (keep == KeepGradient::of_first_step) measured.gradient = room_for_parameters(gpt);
  bool last = false;  // written by rank 0 before a barrier, read by all behind it
  run_world(config, [&](RankContext context, Comm& world) {
    AttentionClock clock(context.trace, context.device.make_work_clock());
    ObservedBackend device(context.device, clock);
    Trainer trainer(run, {device, context.ring, context.trace, context.offload}, world, layout);
    for (int64_t step = 0; !last; ++step) {
      const auto begin = std::chrono::steady_clock::now();
      MetricsRecord record = trainer.train_step();
      context.device.synchronize();  // with the optimizer's work, which a GPU does behind the step's last sums
      record.step_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
      clock.lap();
      if (step == 0 && keep == KeepGradient::of_first_step) {
        put_shards(trainer.optimizer(), context.device, &ShardedAdamW::Segment::gradient, measured.gradient);
      }
      if (world.rank() == 0) {
        if (step >= counts.warmup_steps) add(measured, record);
        measured.stopped = stop && stop();
        last = measured.stopped || is_enough(measured, counts);
      }
      world.barrier();
    }
    const auto rank = size_t(world.rank());
    const auto of_measured = [&](const std::vector<double>& steps) {
      return median({steps.begin() + std::min(counts.warmup_steps, std::ssize(steps)), steps.end()});
    };
    measured.attention_ms[rank] = of_measured(clock.attention_ms);
    measured.ring_wait_ms[rank] = of_measured(clock.ring_wait_ms);
    measured.peak_bytes[rank] = context.device.arena().peak_bytes();
  });
  return measured;
}

}  // namespace ringlet
