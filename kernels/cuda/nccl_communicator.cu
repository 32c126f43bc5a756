#include "kernels/cuda/nccl_communicator.h"

#include <algorithm>
#include <cstring>
#include <future>
#include <thread>
#include <utility>

#include "kernels/cuda/cuda_raii.h"
#include "kernels/cuda/rank_sum.h"

namespace ringlet::cuda {
namespace {

/// For an orderly end, and for NCCL to give up; a thread that is still in NCCL after that is left behind.
constexpr std::chrono::seconds kPatience{5};

ncclUniqueId id_of(std::span<const std::byte> bytes) {
  ncclUniqueId id;
  CHECK(bytes.size() == sizeof(id), "an id of ", bytes.size(), " bytes");
  std::memcpy(&id, bytes.data(), sizeof(id));
  return id;
}

const char* advice_for(const std::string& cause) {
  if (cause.find("uplicate GPU") != std::string::npos) {
    return "Start at most as many processes on a machine as it has GPUs; each shows its own by its local rank.";
  }
  if (cause.find("no answer of all ranks") != std::string::npos) {
    return "Look for the first error of the other ranks; if their work takes so long, raise the timeout.";
  }
  return "Look for the first error of the other ranks; NCCL_DEBUG=WARN tells more.";
}

/// NCCL's words in one line.
std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

bool is_started(ncclResult_t result) { return result == ncclSuccess || result == ncclInProgress; }

}  // namespace

NcclCommunicator::NcclCommunicator(const NcclOptions& options, cudaStream_t stream,
                                   std::function<void()> on_failure)
    : nccl_(nccl_functions()),
      options_(options),
      stream_(stream),
      on_failure_(std::move(on_failure)),
      rank_(options.rank),
      size_(options.size) {
  ncclConfig_t settings = config();
  const Lock lock(mutex_);
  const ncclResult_t result =
      nccl_.comm_init_rank_config(&comm_, options.size, id_of(options.id), options.rank, &settings);
  finish_call(result, "ncclCommInitRankConfig");
  describe();
}

NcclCommunicator::NcclCommunicator(const NcclCommunicator& parent, ncclComm_t comm)
    : nccl_(parent.nccl_),
      options_(parent.options_),
      stream_(parent.stream_),
      on_failure_(parent.on_failure_),
      comm_(comm) {
  const Lock lock(mutex_);
  finish_call(ncclInProgress, "ncclCommSplit");
  describe();
}

NcclCommunicator::~NcclCommunicator() {
  if (group_lock_.owns_lock()) group_lock_.unlock();
  const Lock lock(mutex_);
  abandon();
}

ncclConfig_t NcclCommunicator::config() const {
  ncclConfig_t settings = NCCL_CONFIG_INITIALIZER;
  settings.blocking = 0;
  if (options_.max_ctas > 0) settings.maxCTAs = options_.max_ctas;
  return settings;
}

void NcclCommunicator::describe() {
  finish_call(nccl_.comm_user_rank(comm_, &rank_), "ncclCommUserRank");
  finish_call(nccl_.comm_count(comm_, &size_), "ncclCommCount");
}

std::unique_ptr<NcclCommunicator> NcclCommunicator::split(int color) {
  CHECK(color >= 0, "color ", color);
  const Lock lock(mutex_);
  check_locked();
  ncclConfig_t settings = config();
  // NCCL writes it from a thread of its own, perhaps after this has given up: not on the stack, and left to it then.
  auto part = std::make_unique<ncclComm_t>(nullptr);
  try {
    finish_call(nccl_.comm_split(comm_, color, rank_, part.get(), &settings), "ncclCommSplit");
    const auto deadline = Clock::now() + options_.timeout;
    while (std::atomic_ref(*part).load(std::memory_order_acquire) == nullptr) {
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      if (Clock::now() > deadline) {
        fail_locked("ncclCommSplit found no answer of all ranks within " + std::to_string(options_.timeout.count()) +
                    " ms");
        check_locked();
      }
    }
  } catch (const Error&) {
    part.release();
    throw;
  }
  return std::unique_ptr<NcclCommunicator>(new NcclCommunicator(*this, *part));
}

void NcclCommunicator::close() noexcept {
  const Lock lock(mutex_);
  if (comm_ == nullptr) return;
  ncclResult_t state = nccl_.comm_finalize(comm_);
  const auto deadline = Clock::now() + kPatience;
  while (state == ncclInProgress && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    if (nccl_.comm_get_async_error(comm_, &state) != ncclSuccess) break;
  }
  if (state == ncclSuccess) nccl_.comm_destroy(std::exchange(comm_, nullptr));
  else abandon();
}

void NcclCommunicator::start_group() {
  Lock lock(mutex_);
  check_locked();
  finish_call(nccl_.group_start(), "ncclGroupStart");
  group_lock_ = std::move(lock);
}

void NcclCommunicator::end_group() {
  const Lock lock = std::move(group_lock_);
  finish_call(nccl_.group_end(), "ncclGroupEnd");
}

void NcclCommunicator::send(const Tensor& tensor, int peer) {
  check_in_group(nccl_.send(tensor.data, size_t(tensor.bytes()), ncclInt8, peer, comm_, stream_), "ncclSend");
}

void NcclCommunicator::receive(const Tensor& tensor, int peer) {
  check_in_group(nccl_.receive(tensor.data, size_t(tensor.bytes()), ncclInt8, peer, comm_, stream_), "ncclRecv");
}

void NcclCommunicator::check_in_group(ncclResult_t result, const char* call) {
  if (is_started(result)) return;
  const Lock lock = std::move(group_lock_);
  nccl_.group_end();  // a group of this thread that stays open would swallow all its later calls
  finish_call(result, call);
}

void NcclCommunicator::all_gather(const Tensor& shard, const Tensor& values) {
  const Lock lock(mutex_);
  check_locked();
  const size_t bytes = size_t(shard.bytes());
  finish_call(nccl_.all_gather(shard.data, values.data, bytes, ncclInt8, comm_, stream_), "ncclAllGather");
}

void NcclCommunicator::broadcast(const Tensor& values, int root) {
  const Lock lock(mutex_);
  check_locked();
  const size_t bytes = size_t(values.bytes());
  finish_call(nccl_.broadcast(values.data, values.data, bytes, ncclInt8, root, comm_, stream_), "ncclBroadcast");
}

void NcclCommunicator::sum(std::span<const Tensor> inputs, const Tensor& output) {
  static_assert(kMostInputs <= kMostSummed);
  launch_sum(stream_, inputs, {&output, 1});
}

void NcclCommunicator::check() {
  if (!failed_) return;
  const Lock lock(mutex_);
  check_locked();
}

void NcclCommunicator::check_locked() const {
  if (failed_) throw Error(failure_, advice_);
}

void NcclCommunicator::poll() {
  const Lock lock(mutex_);
  if (comm_ == nullptr || failed_) return;
  ncclResult_t state = ncclSuccess;
  const ncclResult_t result = nccl_.comm_get_async_error(comm_, &state);
  if (!is_started(result)) fail_locked(text_of(result, "ncclCommGetAsyncError"));
  else if (!is_started(state)) fail_locked(text_of(state, "NCCL"));
}

void NcclCommunicator::fail(const std::string& cause) {
  const Lock lock(mutex_);
  if (!failed_) fail_locked(cause);
}

void NcclCommunicator::fail_locked(const std::string& cause) {
  failure_ = "rank " + std::to_string(rank_) + " of " + std::to_string(size_) + ": " + cause;
  advice_ = advice_for(cause);
  on_failure_();
  if (options_.on_failure) options_.on_failure(failure_, advice_);
  failed_ = true;  // before NCCL gives up, which ends what is in flight as if all were well
  abandon();
}

void NcclCommunicator::finish_call(ncclResult_t result, const char* call) {
  const auto deadline = Clock::now() + options_.timeout;
  for (int round = 0; result == ncclInProgress; ++round) {
    if (round < 100) std::this_thread::yield();
    else std::this_thread::sleep_for(std::chrono::microseconds(20));
    ncclResult_t state = ncclSuccess;
    result = nccl_.comm_get_async_error(comm_, &state);
    if (result == ncclSuccess) result = state;
    if (result == ncclInProgress && Clock::now() > deadline) {
      fail_locked(std::string(call) + " found no answer of all ranks within " +
                  std::to_string(options_.timeout.count()) + " ms");
      check_locked();
    }
  }
  if (result == ncclSuccess) return;
  fail_locked(text_of(result, call));
  check_locked();
}

std::string NcclCommunicator::text_of(ncclResult_t result, const char* call) const {
  std::string text = std::string(call) + ": " + nccl_.get_error_string(result);
  const char* detail = nccl_.get_last_error(comm_);
  if (detail != nullptr && detail[0] != '\0') text += " (" + one_line(detail) + ")";
  return text;
}

void NcclCommunicator::abandon() {
  ncclComm_t comm = std::exchange(comm_, nullptr);
  if (comm == nullptr) return;
  std::promise<void> promise;
  const std::future<void> done = promise.get_future();
  std::thread([abort = nccl_.comm_abort, comm, end = std::move(promise)]() mutable {
    abort(comm);
    end.set_value();
  }).detach();
  done.wait_for(kPatience);
}

std::vector<std::byte> make_nccl_id() {
  const NcclFunctions& nccl = nccl_functions();
  ncclUniqueId id;
  const ncclResult_t result = nccl.get_unique_id(&id);
  if (result != ncclSuccess) {
    throw Error(std::string("ncclGetUniqueId: ") + nccl.get_error_string(result),
                "NCCL_SOCKET_IFNAME chooses the network; NCCL_DEBUG=WARN tells more.");
  }
  const auto bytes = std::as_bytes(std::span(&id, 1));
  return {bytes.begin(), bytes.end()};
}

}  // namespace ringlet::cuda
