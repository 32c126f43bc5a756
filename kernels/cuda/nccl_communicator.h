#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/comm/rank_order.h"
#include "kernels/cuda/nccl_library.h"
#include "kernels/cuda_module.h"

namespace ringlet::cuda {

/// One communicator of NCCL and the stream of its calls. One thread calls it, on the communicator's device; poll, fail,
/// check and failed may come from any. After a failure NCCL has been told to give up, and everything throws Error.
class NcclCommunicator final : public MessageQueue {
 public:
  using Clock = std::chrono::steady_clock;

  /// Collective; waits at most for options.timeout. The stream must outlive this. on_failure: called by the thread
  /// that finds the first failure, before anybody else learns of it; by communicators split from this one too.
  NcclCommunicator(const NcclOptions& options, cudaStream_t stream, std::function<void()> on_failure);
  /// Gives up what is in flight unless close() came before.
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Collective; nothing may be in flight. Ranks of one color in the order of their ranks here.
  std::unique_ptr<NcclCommunicator> split(int color);
  /// Ends it in an orderly way: nothing may be in flight, all ranks call it. Falls back to giving up; never throws.
  void close() noexcept;

  void start_group() override;
  void end_group() override;
  void send(const Tensor& tensor, int peer) override;
  void receive(const Tensor& tensor, int peer) override;
  void all_gather(const Tensor& shard, const Tensor& values) override;
  void broadcast(const Tensor& values, int root);
  void sum(std::span<const Tensor> inputs, const Tensor& output) override;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool failed() const { return failed_; }
  /// Throws Error if it has failed.
  void check();
  /// Asks NCCL for errors that no call has reported.
  void poll();
  void fail(const std::string& cause);

 private:
  using Lock = std::unique_lock<std::mutex>;
  NcclCommunicator(const NcclCommunicator& parent, ncclComm_t comm);

  // The lock is held.
  ncclConfig_t config() const;
  void describe();
  void check_locked() const;
  void fail_locked(const std::string& cause);
  /// Waits until a call that goes on in the background has made its way, and throws if it failed.
  void finish_call(ncclResult_t result, const char* call);
  /// Of a call between start_group and end_group: the lock is in group_lock_.
  void check_in_group(ncclResult_t result, const char* call);
  std::string text_of(ncclResult_t result, const char* call) const;
  void abandon();

  const NcclFunctions& nccl_;
  const NcclOptions options_;
  const cudaStream_t stream_;
  const std::function<void()> on_failure_;
  int rank_ = 0, size_ = 1;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  Lock group_lock_;  // held from start_group to end_group
  ncclComm_t comm_ = nullptr;
  std::string failure_, advice_;
};

/// ncclGetUniqueId: what rank 0 gives to the others, which then all make a Comm of it.
std::vector<std::byte> make_nccl_id();

}  // namespace ringlet::cuda
