#include "kernels/cuda/nccl_comm.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "kernels/comm/arguments.h"
#include "kernels/cuda/rank_sum.h"

namespace ringlet::cuda {
namespace {

constexpr int64_t kScratchBytes = 64 << 20;
constexpr std::chrono::milliseconds kWatchInterval{200};

std::span<std::byte> scratch_of(const NcclLane& lane) { return {lane.scratch.get(), size_t(kScratchBytes)}; }

bool is_reached(cudaEvent_t event) {
  const cudaError_t status = cudaEventQuery(event);
  if (status == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check_cuda(status);
  return true;
}

}  // namespace

NcclTimeline::~NcclTimeline() {
  for (const auto& [ready, done] : in_flight_) {
    cudaEventDestroy(ready);
    cudaEventDestroy(done);
  }
  for (const cudaEvent_t event : unused_) cudaEventDestroy(event);
  if (ready_ != nullptr) cudaEventDestroy(ready_);
}

void NcclTimeline::collect() const {
  // What NCCL has given up ends too, but nothing has arrived.
  while (!in_flight_.empty() && !communicator_.failed()) {
    if (!is_reached(in_flight_.front().done) || communicator_.failed()) return;
    unused_.push_back(in_flight_.front().ready);
    unused_.push_back(in_flight_.front().done);
    in_flight_.pop_front();
    ++done_;
  }
}

bool NcclTimeline::reached(int64_t value) const {
  const std::lock_guard lock(mutex_);
  if (done_ < value) collect();
  return done_ >= value;
}

void NcclTimeline::wait(int64_t value) {
  for (int round = 0; !reached(value); ++round) {
    communicator_.check();
    if (round < 1000) std::this_thread::yield();
    else std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void NcclTimeline::make_wait(cudaStream_t stream, int64_t value) {
  const std::lock_guard lock(mutex_);
  if (done_ >= value) return;
  CHECK(value - done_ <= int64_t(in_flight_.size()), "operation ", value, " has not been started");
  check_cuda(cudaStreamWaitEvent(stream, in_flight_[size_t(value - done_ - 1)].done, 0));
}

cudaEvent_t NcclTimeline::record(cudaStream_t stream) {
  cudaEvent_t event = nullptr;
  if (unused_.empty()) {
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  } else {
    event = unused_.back();
    unused_.pop_back();
  }
  check_cuda(cudaEventRecord(event, stream));
  return event;
}

void NcclTimeline::begin(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  if (ready_ != nullptr) unused_.push_back(ready_);  // of one that failed on the way
  ready_ = nullptr;
  ready_ = record(stream);
}

Event NcclTimeline::end(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  const cudaEvent_t done = record(stream);
  in_flight_.push_back({std::exchange(ready_, nullptr), done});
  return {this, done_ + int64_t(in_flight_.size())};
}

bool NcclTimeline::stands_still(std::chrono::milliseconds time) {
  const std::lock_guard lock(mutex_);
  collect();
  if (in_flight_.empty() || !is_reached(in_flight_.front().ready)) return false;
  const int64_t first = done_ + 1;
  if (std::exchange(waits_for_, first) != first) waits_since_ = Clock::now();
  return Clock::now() - waits_since_ > time;
}

NcclLane::NcclLane(const NcclOptions& chosen) : options(chosen), scratch(allocate_bytes(kScratchBytes)) {
  load_sum_kernels();
}

NcclComm::NcclComm(std::shared_ptr<NcclLane> lane, std::unique_ptr<NcclCommunicator> communicator)
    : lane_(std::move(lane)),
      communicator_(std::move(communicator)),
      order_(*communicator_, communicator_->rank(), communicator_->size(), scratch_of(*lane_)),
      timeline_(*communicator_),
      watchdog_([this] { watch(); }) {}

NcclComm::~NcclComm() {
  bool all_is_well = std::uncaught_exceptions() == 0;
  try {
    if (all_is_well) last_.wait();
  } catch (const Error&) {
    all_is_well = false;  // whoever waited for an event knows
  }
  {
    const std::lock_guard lock(watch_mutex_);
    ending_ = true;
  }
  watch_changed_.notify_all();
  watchdog_.join();
  if (lane_->staging_free.timeline == &timeline_) lane_->staging_free = {};
  if (all_is_well) communicator_->close();
}

/// Somebody has to look: a rank's thread may sleep in CUDA behind an operation that never ends.
void NcclComm::watch() {
  cudaSetDevice(lane_->options.device);  // or else the calls of this thread make a context on GPU 0
  std::unique_lock lock(watch_mutex_);
  const std::chrono::milliseconds timeout = lane_->options.timeout;
  while (!watch_changed_.wait_for(lock, kWatchInterval, [this] { return ending_; })) {
    try {
      communicator_->poll();
      if (timeline_.stands_still(timeout)) {
        communicator_->fail("no answer of all ranks within " + std::to_string(timeout.count()) + " ms");
      }
    } catch (const Error& error) {
      communicator_->fail(error.what());
    }
    if (communicator_->failed()) return;
  }
}

int64_t NcclComm::staged_bytes(const Tensor& tensor) {
  const bool on_host = tensor.size() > 0 && device_of(tensor.data) == kHost;
  return on_host ? tensor.bytes() + HostStaging::kAlignment : 0;
}

void NcclComm::begin(Event after, int64_t host_bytes) {
  communicator_->check();
  to_write_back_.clear();
  uses_staging_ = host_bytes > 0;
  if (uses_staging_) {
    after.wait();
    lane_->staging_free.wait();
    lane_->staging.reserve(host_bytes);
  } else {
    wait_for_event(lane_->stream.get(), after);
  }
  timeline_.begin(lane_->stream.get());
}

Event NcclComm::end() {
  for (const auto& [device, host] : to_write_back_) lane_->staging.download(lane_->stream.get(), device, host);
  last_ = timeline_.end(lane_->stream.get());
  if (uses_staging_) lane_->staging_free = last_;
  return last_;
}

Tensor NcclComm::input(const Tensor& tensor) {
  if (staged_bytes(tensor) == 0) return tensor;
  return lane_->staging.upload(lane_->stream.get(), tensor);
}

Tensor NcclComm::in_out(const Tensor& tensor) {
  if (staged_bytes(tensor) == 0) return tensor;
  const Tensor device = lane_->staging.upload(lane_->stream.get(), tensor);
  to_write_back_.push_back({device, tensor});
  return device;
}

Tensor NcclComm::output(const Tensor& tensor) {
  if (staged_bytes(tensor) == 0) return tensor;
  const Tensor device = lane_->staging.room(tensor);
  to_write_back_.push_back({device, tensor});
  return device;
}

Event NcclComm::exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) {
  check_messages(sends, size());
  check_messages(receives, size());
  const CurrentDevice current(lane_->options.device);
  int64_t host_bytes = 0;
  for (const Message& message : sends) host_bytes += staged_bytes(message.tensor);
  for (const Message& message : receives) host_bytes += staged_bytes(message.tensor);
  begin(after, host_bytes);
  std::vector<Message> device_sends, device_receives;
  for (const Message& message : sends) device_sends.push_back({message.peer, input(message.tensor)});
  for (const Message& message : receives) device_receives.push_back({message.peer, output(message.tensor)});
  order_.exchange(device_sends, device_receives);
  return end();
}

Event NcclComm::all_reduce(const Tensor& values, Event after) {
  check_sum(values);
  const CurrentDevice current(lane_->options.device);
  begin(after, staged_bytes(values));
  order_.all_reduce(in_out(values));
  return end();
}

Event NcclComm::reduce_scatter(const Tensor& values, const Tensor& shard, Event after) {
  check_sum(values);
  check_shards(values, shard, size());
  const CurrentDevice current(lane_->options.device);
  begin(after, staged_bytes(values) + staged_bytes(shard));
  const Tensor from = input(values);
  order_.reduce_scatter(from, output(shard));
  return end();
}

Event NcclComm::all_gather(const Tensor& shard, const Tensor& values, Event after) {
  check_shards(values, shard, size());
  const CurrentDevice current(lane_->options.device);
  begin(after, staged_bytes(shard) + staged_bytes(values));
  const Tensor from = input(shard), to = output(values);
  if (from.size() > 0) communicator_->all_gather(from, to);
  return end();
}

Event NcclComm::broadcast(const Tensor& values, int root, Event after) {
  check_values(values);
  check_root(root, size());
  const CurrentDevice current(lane_->options.device);
  begin(after, staged_bytes(values));
  const Tensor device = in_out(values);
  if (device.size() > 0) communicator_->broadcast(device, root);
  return end();
}

void NcclComm::barrier() {
  float nothing = 0;
  const Tensor values = make_tensor(reinterpret_cast<std::byte*>(&nothing), Dtype::f32, {1, 1, 1, 1});
  all_reduce(values, {}).wait();
}

std::unique_ptr<Comm> NcclComm::split(int color) {
  const CurrentDevice current(lane_->options.device);
  last_.wait();
  return std::make_unique<NcclComm>(lane_, communicator_->split(color));
}

std::unique_ptr<Comm> make_nccl_comm(const NcclOptions& options) {
  const int rank = options.rank, size = options.size;
  CHECK(rank >= 0 && rank < size, "rank ", rank, " of ", size);
  const CurrentDevice current(options.device);
  auto lane = std::make_shared<NcclLane>(options);
  const auto cancel = [staging = &lane->staging] { staging->cancel(); };
  auto communicator = std::make_unique<NcclCommunicator>(options, lane->stream.get(), cancel);
  return std::make_unique<NcclComm>(std::move(lane), std::move(communicator));
}

}  // namespace ringlet::cuda
