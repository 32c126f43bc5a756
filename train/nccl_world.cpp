#include "train/nccl_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <sstream>
#include <thread>

#include "kernels/comm/rendezvous.h"
#include "train/devices.h"

namespace ringlet {
namespace {

/// From a failure to the end of the wait for the rank's thread, which frees memory while NCCL gives up what is in flight.
constexpr std::chrono::seconds kGrace{30};

/// How a rank ended. Shared with its thread, which is left behind when it is stuck.
class RankEnding {
 public:
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    changed_.notify_all();
  }
  /// Of the thread; well: whatever the others did meanwhile.
  void end(bool well) {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    if (well) error_ = nullptr;
    changed_.notify_all();
  }
  /// True: the thread has come to its end. False: it has failed, and not ended within the grace.
  bool wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return ended_ || error_ != nullptr; });
    return changed_.wait_for(lock, kGrace, [this] { return ended_; });
  }
  std::exception_ptr error() {
    const std::lock_guard lock(mutex_);
    return error_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  std::exception_ptr error_;
};

/// Rank 0's agreement and NCCL's id for it, as they go to the others: the text, a zero, the id.
std::vector<std::byte> invitation(const std::string& agreement, const std::vector<std::byte>& id) {
  const auto text = std::as_bytes(std::span(agreement.c_str(), agreement.size() + 1));
  std::vector<std::byte> bytes(text.begin(), text.end());
  bytes.insert(bytes.end(), id.begin(), id.end());
  return bytes;
}

std::unique_ptr<Comm> join_world(const Config& config, const RankProcess& process,
                                 const std::string& agreement, const Devices& devices,
                                 const std::shared_ptr<RankEnding>& ending) {
  const CudaInterface& module = devices.module();
  const auto timeout = std::chrono::milliseconds(int64_t(1e3 * config.run.timeout_seconds));
  std::vector<std::byte> bytes;
  if (process.leads()) bytes = invitation(agreement, module.make_nccl_id());
  bytes = share_bytes({process.address, process.rank, process.size, timeout}, bytes);
  const auto text_end = std::ranges::find(bytes, std::byte{0});
  CHECK(text_end != bytes.end(), "rank 0 sent ", bytes.size(), " bytes of another kind");
  check_agreement(process.rank, agreement,
                  {reinterpret_cast<const char*>(bytes.data()), size_t(text_end - bytes.begin())});
  NcclOptions options;
  options.id.assign(text_end + 1, bytes.end());
  options.rank = process.rank;
  options.size = process.size;
  options.device = devices.gpu_index(0);
  options.max_ctas = int(config.run.nccl_max_ctas);
  options.timeout = timeout;
  // The rank's thread finds out when it next waits for a message, if it ever comes to that.
  options.on_failure = [ending](const std::string& cause, const std::string& advice) {
    ending->fail(std::make_exception_ptr(Error(cause, advice)));
  };
  return module.make_nccl_comm(options);
}

void run_rank(const Config& config, const RankProcess& process, const std::string& agreement,
              const RankMain& rank_main, const std::shared_ptr<RankEnding>& ending) {
  Trace trace;
  const Devices devices(config.run.device, host_threads(config.run), CudaAttention::automatic,
                        process.local_rank);
  // NCCL looks first whether others have this GPU as well: the arena would only find that too little is free.
  std::unique_ptr<Comm> joined = join_world(config, process, agreement, devices, ending);
  const int64_t arena_bytes =
      config.memory.arena_bytes > 0 ? config.memory.arena_bytes : devices.share_bytes(0, 1);
  const std::unique_ptr<Backend> device = devices.make(0, 1, arena_bytes, trace);
  const std::unique_ptr<Offload> offload = make_offload(config, devices, process.rank, trace);
  // Comms that die before the device: a rank that fails gives up the messages in its memory first.
  const std::unique_ptr<Comm> world = std::move(joined);
  const std::unique_ptr<Comm> ring = world->split(process.rank / int(config.run.ring_size()));
  try {
    rank_main({*device, *ring, trace, offload.get()}, *world);
    device->synchronize();
    world->barrier();  // who leaves first would look lost to the others
  } catch (...) {
    ending->fail(std::current_exception());  // before the way out, on which it may get stuck
    throw;
  }
}

/// The error as the program reports it, with the rank that it comes from.
[[noreturn]] void rethrow(std::exception_ptr error, const RankProcess& process) {
  const auto named = [&](const std::string& cause) {
    const bool is_named = process.size == 1 || cause.starts_with("rank ");
    return is_named ? cause : fmt::format("rank {}: {}", process.rank, cause);
  };
  try {
    std::rethrow_exception(std::move(error));
  } catch (const UsageError& usage) {
    throw UsageError(named(usage.what()), usage.advice);
  } catch (const Error& other) {
    throw Error(named(other.what()), other.advice);
  } catch (const std::bad_alloc&) {
    throw Error(named("out of host memory"),
                "free some memory, or use a smaller model or a shorter sequence");
  } catch (const std::exception& other) {
    throw Error(named(other.what()));
  }
}

}  // namespace

std::string agreement_of(const Config& config, const std::string& corpus_fingerprint, int64_t first_step) {
  return fmt::format("{}\n[start]\ncorpus = {}\nstep = {}\n", to_toml(config), corpus_fingerprint, first_step);
}

void check_agreement(int rank, const std::string& own, const std::string& of_rank_0) {
  std::istringstream own_lines(own), lines_of_rank_0(of_rank_0);
  std::string mine, theirs, group;
  while (true) {
    const bool more = bool(std::getline(own_lines, mine));
    const bool more_of_rank_0 = bool(std::getline(lines_of_rank_0, theirs));
    if (!more && !more_of_rank_0) return;
    if (!more) mine.clear();
    if (!more_of_rank_0) theirs.clear();
    if (mine != theirs) break;
    if (mine.starts_with('[')) group = mine;
  }
  throw Error(fmt::format("rank {} has {} {} where rank 0 has {}", rank, group, mine, theirs),
              "start all ranks with the same command, on the same files");
}

void run_nccl_rank(const Config& config, const RankProcess& process, const std::string& agreement,
                   const RankMain& rank_main) {
  const auto ending = std::make_shared<RankEnding>();
  std::thread thread([&, ending] {
    bool well = false;
    try {
      run_rank(config, process, agreement, rank_main, ending);
      well = true;
    } catch (...) {
      ending->fail(std::current_exception());
    }
    ending->end(well);
  });
  if (ending->wait()) thread.join();
  else thread.detach();
  if (const std::exception_ptr error = ending->error()) rethrow(error, process);
}

}  // namespace ringlet
