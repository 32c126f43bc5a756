#include "tests/support/ring_case.h"

#include "kernels/comm/threads.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/random.h"
#include "tests/support/deferred_backend.h"

namespace ringlet::test {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 32;

void load_weights(const ValuesByName& weights, const Parameters& parameters) {
  for (const Parameter& parameter : parameters.all()) {
    upload<float>(parameters.device(), weights.at(parameter.name), parameter.weight);
  }
}

std::vector<float> read_floats(Backend& device, const Tensor& tensor) {
  std::vector<float> values(tensor.size());
  read<float>(device, tensor, values);
  return values;
}

Step make_step(const ModelCase& c, const SequenceLayout& layout, Pass pass, RankContext context) {
  const std::vector<Piece>& pieces = layout.ranks[context.ring.rank()];
  return Step(context, c.settings, pass, layout, c.mask, c.config.rope_base, c.config.heads.head_dim,
              take_rows(c.tokens, pieces), take_rows(c.labels, pieces));
}

}  // namespace

std::unique_ptr<Backend> plain_backend(int64_t arena_bytes, Trace& trace) {
  return make_cpu_backend(arena_bytes, trace);
}

std::unique_ptr<Backend> late_backend(int64_t arena_bytes, Trace& trace) {
  return make_deferred_backend(arena_bytes, trace);
}

ModelResult run_model(const ModelCase& c, const MakeBackend& make_backend) {
  const int64_t length = int64_t(c.tokens.size());
  const SequenceLayout layout = make_layout(c.layout, length, c.ring_size);
  ModelResult result{std::vector<float>(length), {}, std::vector<int64_t>(c.ring_size)};
  ThreadsOptions options;
  options.ranks = c.ring_size;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = make_backend(kArenaBytes, trace);
    Parameters parameters(c.config, *device, {ring.rank(), c.ring_size}, Parameters::Gradients::present);
    load_weights(c.weights, parameters);
    parameters.zero_gradients();
    Gpt gpt(parameters);
    const int64_t base_bytes = device->arena().used_bytes();
    Step step = make_step(c, layout, Pass::training, {*device, ring, trace});
    gpt.train(step, c.gradient_scale, [](int64_t) {});
    result.peak_bytes[ring.rank()] = device->arena().peak_bytes() - base_bytes;
    put_rows(read_floats(*device, step.losses), step.pieces(), result.losses);
    for (const Bucket& bucket : parameters.buckets()) {
      device->wait(ring.all_reduce(bucket.gradients, device->record()));
    }
    device->synchronize();
    if (ring.rank() != 0) return;
    for (const Parameter& parameter : parameters.all()) {
      result.gradients[parameter.name] = read_floats(*device, parameter.gradient);
    }
  });
  return result;
}

std::vector<float> evaluate_model(const ModelCase& c, const MakeBackend& make_backend) {
  const int64_t length = int64_t(c.tokens.size());
  const SequenceLayout layout = make_layout(c.layout, length, c.ring_size);
  std::vector<float> losses(length);
  ThreadsOptions options;
  options.ranks = c.ring_size;
  run_ranks(options, [&](Comm& ring, Trace& trace) {
    const std::unique_ptr<Backend> device = make_backend(kArenaBytes, trace);
    Parameters parameters(c.config, *device, {ring.rank(), c.ring_size}, Parameters::Gradients::absent);
    load_weights(c.weights, parameters);
    Gpt gpt(parameters);
    Step step = make_step(c, layout, Pass::evaluation, {*device, ring, trace});
    gpt.evaluate(step);
    put_rows(read_floats(*device, step.losses), step.pieces(), losses);
  });
  return losses;
}

void fill_tokens(ModelCase& c, int64_t length, uint64_t seed) {
  const CounterRandom random(seed, hash_name("tokens"));
  for (int64_t i = 0; i < length; ++i) {
    c.tokens.push_back(int32_t(random.bits(2 * i) % c.config.vocabulary));
    c.labels.push_back(i % 7 == 6 ? -1 : int32_t(random.bits(2 * i + 1) % c.config.vocabulary));
  }
}

}  // namespace ringlet::test
