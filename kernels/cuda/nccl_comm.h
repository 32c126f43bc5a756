#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/comm.h"
#include "kernels/cuda/current_device.h"
#include "kernels/cuda/device_timeline.h"
#include "kernels/cuda/host_staging.h"
#include "kernels/cuda/nccl_communicator.h"
#include "kernels/cuda_module.h"

namespace ringlet::cuda {

/// Counts operations of a communicator by CUDA events. After a failure nothing more is reached, and waits throw.
class NcclTimeline final : public DeviceTimeline {
 public:
  using Clock = std::chrono::steady_clock;

  /// Must not outlive the communicator.
  explicit NcclTimeline(NcclCommunicator& communicator) : communicator_(communicator) {}
  ~NcclTimeline() override;
  bool reached(int64_t value) const override;
  void wait(int64_t value) override;
  /// Says nothing of failures: after one the stream goes on, and the host finds out when it waits.
  void make_wait(cudaStream_t stream, int64_t value) override;

  /// An operation begins at the point that the stream has now come to, and ends at another. On the stream's device.
  void begin(cudaStream_t stream);
  Event end(cudaStream_t stream);
  /// Has this rank been ready for the first operation in flight, and waited for it, for so long? What it computes before
  /// that is its own affair. Asked again and again by one thread.
  bool stands_still(std::chrono::milliseconds time);

 private:
  struct Operation {
    cudaEvent_t ready, done;
  };

  cudaEvent_t record(cudaStream_t stream);  // the lock is held, here and below
  void collect() const;

  NcclCommunicator& communicator_;
  mutable std::mutex mutex_;
  mutable std::deque<Operation> in_flight_;  // number done_ + 1, done_ + 2, ...
  mutable std::vector<cudaEvent_t> unused_;
  mutable int64_t done_ = 0;
  cudaEvent_t ready_ = nullptr;  // of the operation that has begun and not ended
  int64_t waits_for_ = 0;        // the operation that stood still when last asked
  Clock::time_point waits_since_;
};

/// What a world and all that was split from it share: they run on one stream, so that no two communicators of a rank
/// wait for each other's multiprocessors.
struct NcclLane {
  explicit NcclLane(const NcclOptions& options);
  ~NcclLane() { cudaStreamSynchronize(stream.get()); }  // what is on it still uses the staging
  const NcclOptions options;
  UrgentStream stream;
  CudaBytes scratch;
  HostStaging staging;
  Event staging_free;  // of the operation that uses the staging
};

/// One rank among processes that have a GPU each, over NCCL. As kernels/comm.h says, and:
/// - all operations of a rank run one after the other, on a stream of their own, in the order of the calls, those
///   of the Comms that were split from it among them: ranks have to start what they do together in the same order;
/// - sums are taken by own kernels in rank order, not by NCCL, whose order is another: the bits are those of the
///   threads Comm;
/// - an `after` of a GPU's timeline, and waiting for its events on a stream, does not stop the host (DeviceTimeline);
/// - tensors in host memory are legal, meant for a few numbers: they are staged through the GPU, and the call waits
///   for `after` and for the last such operation;
/// - a rank that finds no answer within the timeout, or of which NCCL reports an error, gives up everything in flight.
class NcclComm final : public Comm {
 public:
  NcclComm(std::shared_ptr<NcclLane> lane, std::unique_ptr<NcclCommunicator> communicator);
  /// Waits for what is in flight, or, while an exception is on its way, gives it up.
  ~NcclComm() override;
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  int rank() const override { return communicator_->rank(); }
  int size() const override { return communicator_->size(); }
  Event exchange(std::span<const Message> sends, std::span<const Message> receives, Event after) override;
  Event all_reduce(const Tensor& values, Event after) override;
  Event reduce_scatter(const Tensor& values, const Tensor& shard, Event after) override;
  Event all_gather(const Tensor& shard, const Tensor& values, Event after) override;
  Event broadcast(const Tensor& values, int root, Event after) override;
  void barrier() override;
  std::unique_ptr<Comm> split(int color) override;

 private:
  struct Staged {
    Tensor device, host;
  };

  /// The stream goes on after `after`; `host_bytes`: of the operation's tensors, from staged_bytes().
  void begin(Event after, int64_t host_bytes);
  Event end();
  static int64_t staged_bytes(const Tensor& tensor);
  /// The tensor on the device: itself, or a copy with its values.
  Tensor input(const Tensor& tensor);
  /// The same, to be written back by end().
  Tensor in_out(const Tensor& tensor);
  Tensor output(const Tensor& tensor);
  void watch();

  const std::shared_ptr<NcclLane> lane_;
  const std::unique_ptr<NcclCommunicator> communicator_;
  RankOrder order_;
  NcclTimeline timeline_;
  Event last_;
  std::vector<Staged> to_write_back_;
  bool uses_staging_ = false;
  std::mutex watch_mutex_;
  std::condition_variable watch_changed_;
  bool ending_ = false;
  std::thread watchdog_;
};

/// See CudaInterface::make_nccl_comm.
std::unique_ptr<Comm> make_nccl_comm(const NcclOptions& options);

}  // namespace ringlet::cuda
