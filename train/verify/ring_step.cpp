#include "train/verify/ring_step.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "kernels/comm/threads.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/host_values.h"
#include "train/verify/attention_watch.h"
#include "train/verify/spot_check.h"

namespace ringlet {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 36;  // addresses only
constexpr int kMostRanksOfDevice = 16;  // problems of verification are small: a GPU is shared out once for all of them
constexpr std::chrono::seconds kTimeout{60};

/// One rank of the step. Writes into what all ranks share: its own positions, elements and lines only.
class RankStep {
 public:
  RankStep(const VerifyProblem& problem, const RingSetup& setup, const RingParts& parts,
           Watch watch, RankContext context, Comm& world)
      : problem_(problem),
        setup_(setup),
        parts_(parts),
        watch_(watch),
        context_(context),
        world_(world),
        pieces_(setup.sequence_layout(problem.length()).ranks[size_t(context.ring.rank())]),
        layout_(parts.layout(setup, problem.length())),
        settings_(setup.settings),
        parameters_(problem.gpt, context.device, {world.rank(), world.size()}, setup.gradients),
        gpt_(parameters_),
        rank_{context, world, layout_, settings_, gpt_},
        optimizer_(parameters_, world) {
    for (const Parameter& parameter : parameters_.all()) {
      parameters_.set(parameter, problem.weights.at(parameter.name));
    }
    const int64_t count = std::ssize(problem.windows);
    for (int64_t i = rank_.ring_index(); i < count; i += rank_.rings()) own_windows_.push_back(i);
  }

  void run(StepValues& values, std::vector<std::string>& leaks, std::vector<Deviation>& samples,
           std::map<std::string, std::vector<float>>& weights) {
    if (watch_ == Watch::everything) evaluate(values, leaks);
    train(values, samples);
    for (const Parameter& parameter : parameters_.all()) {
      weights[parameter.name] = host_values(context_.device, parameter.weight);
    }
  }

 private:
  Batch batch_of(int64_t window) const {
    return parts_.batch(problem_.windows[size_t(window)], layout_.ranks[size_t(rank_in_ring())]);
  }
  int rank_in_ring() const { return context_.ring.rank(); }

  std::vector<float> evaluate_batch(const Batch& batch) const {
    return score(rank_, batch,
                 mask_of(batch.window, problem_.rule, problem_.sliding_window));
  }

  void put_losses(std::span<const float> losses, std::vector<double>& whole) const {
    for (const Piece& piece : pieces_) {
      for (int64_t i = 0; i < piece.row_count; ++i) {
        whole[size_t(piece.position(i))] = losses[size_t(piece.first_row + i)];
      }
    }
  }

  void evaluate(StepValues& values, std::vector<std::string>& leaks) {
    PositionBins bins(problem_.length());
    for (const int64_t window : own_windows_) {
      const Batch batch = batch_of(window);
      const std::vector<float> losses = evaluate_batch(batch);
      add_losses(losses, batch, rank_.pieces(), bins);
      put_losses(losses, values.windows[size_t(window)].eval_losses);
      if (window == own_windows_.front()) probe_leaks(window, batch, losses, leaks);
    }
    const double mean = mean_over_world(bins).mean();
    if (world_.rank() == 0) values.eval_loss = mean;
  }

  PositionBins mean_over_world(const PositionBins& bins) const {
    std::vector<double> flat = bins.to_flat();
    sum_over_world(rank_, flat);
    return PositionBins::from_flat(problem_.length(), flat);
  }

  /// Changes one token at a time, its label not, and looks at which losses move.
  void probe_leaks(int64_t window, const Batch& before, std::span<const float> losses,
                   std::vector<std::string>& leaks) {
    const VerifyWindow& whole = problem_.windows[size_t(window)];
    for (const int64_t token : {whole.window.token_count / 3, whole.window.token_count / 2}) {
      Batch after = before;
      for (const Piece& piece : pieces_) {
        for (int64_t i = 0; i < piece.row_count; ++i) {
          if (piece.position(i) != token) continue;
          int32_t& id = after.tokens[size_t(piece.first_row + i)];
          id = id == 0 ? 1 : id - 1;
        }
      }
      const std::vector<float> changed = evaluate_batch(after);
      for (const Piece& piece : pieces_) {
        for (int64_t i = 0; i < piece.row_count; ++i) {
          const size_t row = size_t(piece.first_row + i);
          const std::string wrong = leak(whole, token, piece.position(i), losses[row] == changed[row]);
          if (wrong.empty()) continue;
          leaks.push_back(fmt::format("token {} of window {} {} position {} (rank {})", token, window,
                                      wrong, piece.position(i), world_.rank()));
        }
      }
    }
  }

  /// What is wrong about a loss that is, or is not, the same after a change of `token`; else nothing.
  std::string leak(const VerifyWindow& whole, int64_t token, int64_t position, bool same) const {
    const bool scored = whole.labels[size_t(position)] >= 0;
    if (position == token) return same && scored ? "does not reach the loss at its own" : "";
    if (same || !scored) return "";
    // Each layer carries a token on by a window.
    const int64_t reach = problem_.sliding_window > 0
                              ? problem_.gpt.layers * (problem_.sliding_window - 1)
                              : problem_.length();
    if (position < token) return "changes the loss at the earlier";
    if (mask_of(whole.window, problem_.rule, 0).first_visible(position) > token) {
      return "changes the loss in another document, at";
    }
    return position - token > reach ? "changes the loss outside the window, at" : "";
  }

  void train(StepValues& values, std::vector<Deviation>& own_samples) {
    AttentionWatch watcher(context_.device, context_.trace, problem_.gpt, pieces_);
    const SequenceLayout held = setup_.sequence_layout(problem_.length());
    SpotCheck samples(context_.device, context_.ring, context_.trace, problem_.gpt, held, {});
    const bool everything = watch_ == Watch::everything;
    size_t next = 0;
    PositionBins bins(problem_.length());
    Batch in_hand = own_windows_.empty() ? Batch{} : batch_of(own_windows_.front());
    TrainStep step(rank_, parameters_, optimizer_, problem_.rule, problem_.sliding_window,
                   parts_.rules(in_hand));
    const StepWindows windows{std::ssize(own_windows_), (std::ssize(problem_.windows) + setup_.rings - 1) / setup_.rings,
                              problem_.scored_tokens(),
                              [&] {
                                const int64_t window = own_windows_[next];
                                samples.begin_window(problem_.mask(problem_.windows[size_t(window)]));
                                in_hand = batch_of(window);
                                return &in_hand;
                              }};
    double squares = step.accumulate(
        windows, everything ? static_cast<Backend&>(watcher) : samples,
        [&](std::span<const float> losses, const Batch& batch) {
          WindowValues& whole = values.windows[size_t(own_windows_[next++])];
          put_losses(losses, whole.losses);
          if (everything) watcher.put(whole);
          add_losses(losses, batch, rank_.pieces(), bins);
        });
    if (context_.ring.rank() == 0) own_samples = samples.deviations();  // equal on the ring
    put_shards(optimizer_, context_.device, &ShardedAdamW::Segment::gradient, values.gradients);
    sum_over_world(rank_, {&squares, 1});
    const double loss = mean_over_world(bins).mean();
    step.update(squares, problem_.clip_norm, problem_.optimizer);
    put_shards(optimizer_, context_.device, &ShardedAdamW::Segment::weights, values.next_weights);
    if (world_.rank() != 0) return;
    values.train_loss = loss;
    values.gradient_norm = std::sqrt(squares);
  }

  const VerifyProblem& problem_;
  const RingSetup& setup_;
  const RingParts& parts_;
  const Watch watch_;
  const RankContext context_;
  Comm& world_;
  const std::vector<Piece> pieces_;  // what this rank should hold
  const SequenceLayout layout_;      // what it is told that ranks hold
  const StepSettings settings_;
  Parameters parameters_;
  Gpt gpt_;
  const ModelRank rank_;
  ShardedAdamW optimizer_;
  std::vector<int64_t> own_windows_;
};

StepValues room_for(const VerifyProblem& problem, Watch watch) {
  StepValues values;
  values.windows.resize(problem.windows.size());
  for (WindowValues& window : values.windows) {
    window.losses.assign(size_t(problem.length()), 0);
    if (watch == Watch::samples) continue;
    window.eval_losses = window.losses;
    resize_for(problem.gpt, problem.length(), window);
  }
  values.gradients = values.next_weights = room_for_parameters(problem.gpt);
  return values;
}

Batch rows_of(const VerifyWindow& window, std::span<const Piece> pieces) {
  Batch batch;
  batch.window = window.window;
  for (const Piece& piece : pieces) {
    for (int64_t i = 0; i < piece.row_count; ++i) {
      batch.tokens.push_back(window.tokens[size_t(piece.position(i))]);
      batch.labels.push_back(window.labels[size_t(piece.position(i))]);
    }
  }
  return batch;
}

}  // namespace

RingParts real_parts(int threads_per_rank) {
  RingParts parts;
  parts.device = [threads_per_rank](int, int64_t arena_bytes, Trace& trace) {
    return make_cpu_backend(arena_bytes, trace, threads_per_rank);
  };
  parts.ring = [](std::unique_ptr<Comm> ring) { return ring; };
  parts.world = [](std::unique_ptr<Comm> world) { return world; };
  parts.layout = &RingSetup::sequence_layout;
  parts.batch = rows_of;
  parts.rules = [](const Batch&) { return StepRules{}; };
  return parts;
}

RingParts real_parts(const Devices& devices) {
  RingParts parts = real_parts();
  parts.memory = devices.memory();
  parts.device = [&devices](int rank, int64_t arena_bytes, Trace& trace) {
    return devices.make(rank, kMostRanksOfDevice, arena_bytes, trace);
  };
  return parts;
}

Values room_for_parameters(const GptConfig& gpt) {
  Values values;
  for (const ParameterShape& shape : parameter_shapes(gpt)) values[shape.name].assign(size_t(shape.size()), 0);
  return values;
}

void put_shards(const ShardedAdamW& optimizer, Backend& device, Tensor ShardedAdamW::Segment::*shard, Values& whole) {
  for (const ShardedAdamW::Segment& segment : optimizer.segments()) {
    const std::vector<float> own = host_values(device, segment.*shard);
    std::ranges::copy(own, whole.at(segment.parameter->name).begin() + segment.first_element);
  }
}

RingStep ring_step(const VerifyProblem& problem, const RingSetup& setup, const RingParts& parts,
                   Watch watch) {
  RingStep result{room_for(problem, watch), {}, {}, {}};
  std::vector<std::vector<std::string>> leaks(size_t(setup.ranks()));
  std::vector<std::vector<Deviation>> samples(size_t(setup.ranks()));
  std::vector<std::map<std::string, std::vector<float>>> weights(size_t(setup.ranks()));
  run_ranks({.ranks = setup.ranks(), .timeout = kTimeout, .memory = parts.memory}, [&](Comm& all_ranks, Trace& trace) {
    const auto me = size_t(all_ranks.rank());
    const std::unique_ptr<Backend> device = parts.device(all_ranks.rank(), kArenaBytes, trace);
    const std::unique_ptr<Comm> world = parts.world(all_ranks.split(0));
    const std::unique_ptr<Comm> ring =
        parts.ring(world->split(world->rank() / setup.ring_size));
    RankStep(problem, setup, parts, watch, {*device, *ring, trace}, *world)
        .run(result.values, leaks[me], samples[me], weights[me]);
    device->synchronize();
  });
  for (const auto& of_rank : samples) {
    result.samples.insert(result.samples.end(), of_rank.begin(), of_rank.end());
  }
  for (const auto& of_rank : leaks) {
    result.leaks.insert(result.leaks.end(), of_rank.begin(), of_rank.end());
  }
  for (const auto& [name, values] : weights.front()) {
    const auto read = [&](double master) {
      return problem.gpt.dtype == Dtype::bf16 ? to_float(to_bf16(float(master))) : float(master);
    };
    if (std::ranges::equal(values, result.values.next_weights.at(name), {}, {}, read)) continue;
    result.strays.push_back(fmt::format("{} as the model reads it is not what the optimizer made", name));
  }
  for (size_t rank = 1; rank < weights.size(); ++rank) {
    for (const auto& [name, values] : weights[rank]) {
      if (values == weights.front().at(name)) continue;
      result.strays.push_back(fmt::format("{} of rank {} differs from rank 0's", name, rank));
    }
  }
  return result;
}

}  // namespace ringlet
