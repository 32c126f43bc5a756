// Tensors of a GPU wait in pinned host memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/comm/threads.h"
#include "kernels/cuda_module.h"
#include "kernels/random.h"
#include "model/block_inputs.h"
#include "model/gpt.h"
#include "tests/support/module_under_test.h"

namespace ringlet::test {
namespace {

using Bytes = std::vector<std::byte>;

Bytes random_bytes(int64_t count, uint64_t seed) {
  const CounterRandom random(seed, hash_name("offload"));
  Bytes bytes(count);
  for (int64_t i = 0; i < count; ++i) bytes[i] = std::byte(random.bits(i));
  return bytes;
}

class CudaOffloadTest : public testing::Test {
 protected:
  void SetUp() override {
    const CudaModule module = module_under_test();
    if (module.interface == nullptr) GTEST_SKIP() << "no CUDA device: " << module.trouble;
    if (const std::string trouble = module.interface->examine().trouble; !trouble.empty()) {
      GTEST_SKIP() << "no CUDA device: " << trouble;
    }
    interface_ = module.interface;
    device_ = interface_->make_backend({.device = 0, .arena_bytes = 512 << 20}, trace_);
  }

  std::unique_ptr<Offload> make_offload(int64_t bytes) { return interface_->make_offload(0, bytes, trace_); }

  /// Two bytes an element: an odd number of them ends beside every larger word.
  Tensor put_bytes(const Bytes& bytes) {
    const Tensor tensor =
        device_->arena().allocate("test", Dtype::bf16, {int64_t(bytes.size()) / 2, 1, 1, 1});
    device_->upload(bytes, tensor);
    return tensor;
  }
  Bytes get(const Tensor& tensor) {
    Bytes bytes(tensor.bytes());
    device_->read(tensor, bytes);
    return bytes;
  }
  /// Work for some milliseconds.
  void compute() {
    if (!busy_) busy_ = device_->arena().allocate("test", Dtype::f32, {4096, 2048, 1, 1});
    const Tensor half = busy_.slice(0, 2048);
    device_->fill(1, half);
    const Tensor product = busy_.slice(2048, 2048);
    for (int i = 0; i < 4; ++i)
      device_->matmul(half, Transpose::no, half, Transpose::no, Write::set, product);
  }

  const CudaInterface* interface_ = nullptr;
  Trace trace_;
  std::unique_ptr<Backend> device_;
  Tensor busy_;
};

// What is put is overwritten as soon as it has left, what comes back is read as soon as it has come, and
// nothing but the events orders the two queues.
TEST_F(CudaOffloadTest, FetchesTheBitsThatWerePutInAnyOrder) {
  const std::vector<int64_t> counts = {1, 7, 0, 255, 4097, 1'000'003, 20'000'001};  // of two bytes
  const int64_t all = 2 * 21'100'000;
  const auto offload = make_offload(all);
  for (const bool last_first : {false, true}) {
    std::vector<Bytes> values;
    std::vector<Tensor> tensors;
    std::vector<int64_t> offsets;
    int64_t offset = 2;
    compute();
    for (const int64_t count : counts) {
      values.push_back(random_bytes(2 * count, values.size() + (last_first ? 100 : 1)));
      tensors.push_back(put_bytes(values.back()));
      offsets.push_back(offset);
      offset += 2 * count;
    }
    const Arena::Mark mark = device_->arena().mark();
    std::vector<size_t> order;
    for (size_t i = 0; i < counts.size(); ++i) {
      compute();
      const Event gone = offload->put(tensors[i], offsets[i], device_->record());
      EXPECT_FALSE(gone.timeline->is_of_ranks());
      compute();
      device_->wait(gone);
      device_->fill(-1, tensors[i]);
      order.push_back(i);
    }
    if (last_first) std::ranges::reverse(order);
    std::vector<Event> back(counts.size());
    for (const size_t i : order) {
      back[i] = offload->fetch(offsets[i], tensors[i], device_->record());
      compute();
    }
    for (const size_t i : order) {
      device_->wait(back[i]);
      const Tensor copy = device_->arena().allocate("test", Dtype::bf16, tensors[i].shape);
      device_->copy(tensors[i], copy);
      EXPECT_TRUE(get(copy) == values[i]) << counts[i] << " elements, last first: " << last_first;
      EXPECT_TRUE(back[i].reached());
    }
    device_->arena().rewind(mark);
  }
}

TEST_F(CudaOffloadTest, ATensorMayStandAnywhereInALargeRoom) {
  const int64_t room = (int64_t{2} << 30) + 4096;
  const auto offload = make_offload(room);
  const Bytes values = random_bytes(200'002, 5);
  const Tensor from = put_bytes(values), to = put_bytes(Bytes(200'002));
  for (const int64_t offset :
       {int64_t{0}, (int64_t{1} << 30) - 1001, (int64_t{2} << 30) - 3, room - 200'002}) {
    if (offset + 200'002 > room) {
      EXPECT_THROW(offload->put(from, offset, {}), Error);
      continue;
    }
    device_->fill(0, to);
    offload->put(from, offset, device_->record());
    offload->fetch(offset, to, device_->record()).wait();  // the host waits
    EXPECT_TRUE(get(to) == values) << offset;
  }
  EXPECT_THROW(offload->put(from, -1, {}), Error);
  EXPECT_THROW(offload->fetch(room - 1, to, {}), Error);
}

TEST_F(CudaOffloadTest, MoreThanTheHostHasIsAnErrorThatNamesTheBytes) {
  try {
    make_offload(int64_t{1} << 50);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("1125899906842624 bytes of pinned host memory"),
              std::string::npos)
        << error.what();
    EXPECT_NE(error.advice.find("memory.offload"), std::string::npos) << error.advice;
  }
  make_offload(0);
}

/// Losses, then the gradients of all parameters, of two windows, and the arena's peak above the parameters.
struct Outcome {
  std::vector<Bytes> bits;
  int64_t peak_bytes = 0;
};

Outcome train(const CudaInterface& interface, const GptConfig& config, Recompute policy, int64_t length,
              bool away) {
  Outcome outcome;
  run_ranks({.ranks = 1}, [&](Comm& world, Trace& trace) {
    const auto device = interface.make_backend({.device = 0, .arena_bytes = 512 << 20}, trace);
    std::unique_ptr<Offload> offload;
    if (away) offload = interface.make_offload(0, BlockInputs::offloaded_bytes(config, length), trace);
    const SequenceLayout layout = make_layout(Layout::zigzag, length, 1);
    Parameters parameters(config, *device, {}, Parameters::Gradients::present);
    parameters.initialise(7);
    parameters.zero_gradients();
    Gpt gpt(parameters);
    const int64_t base_bytes = device->arena().used_bytes();
    const auto keep = [&](const Tensor& tensor) {
      outcome.bits.emplace_back(tensor.bytes());
      device->read(tensor, outcome.bits.back());
    };
    for (int window = 0; window < 2; ++window) {
      const ArenaScope scope(device->arena());
      std::vector<int32_t> tokens(length);
      for (int64_t i = 0; i < length; ++i) tokens[i] = int32_t((7 * i + i * i + window) % config.vocabulary);
      const Mask mask;
      Step step({*device, world, trace, offload.get()}, {.recompute = policy}, Pass::training, layout, mask,
                config.rope_base, config.heads.head_dim, tokens, tokens);
      gpt.train(step, 0.01f, [](int64_t) {});
      keep(step.losses);
    }
    for (const Parameter& parameter : parameters.all()) keep(parameter.gradient);
    outcome.peak_bytes = device->arena().peak_bytes() - base_bytes;
  });
  return outcome;
}

TEST_F(CudaOffloadTest, TrainsTheSameBits) {
  const int64_t length = 1500;
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    for (const int64_t layers : {1, 2, 7}) {
      for (const Recompute policy : {Recompute::none, Recompute::selective, Recompute::full}) {
        GptConfig config{.layers = layers, .width = 256, .heads = {4, 2, 64}, .mlp_width = 512};
        config.dtype = dtype;
        SCOPED_TRACE(testing::Message()
                     << name_of(dtype) << ", " << layers << " layers, " << name_of(policy));
        const Outcome kept = train(*interface_, config, policy, length, false);
        const Outcome away = train(*interface_, config, policy, length, true);
        EXPECT_TRUE(kept.bits == away.bits);
        EXPECT_LE(away.peak_bytes, kept.peak_bytes);
        const bool must_shrink = policy == Recompute::full && layers == 7;
        EXPECT_TRUE(!must_shrink || away.peak_bytes < kept.peak_bytes);
      }
    }
  }
}

}  // namespace
}  // namespace ringlet::test
