#include "kernels/cpu/file_offload.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "kernels/check.h"
#include "kernels/use_all_cores.h"

namespace ringlet {
namespace {

constexpr std::chrono::milliseconds kPatience{50};

/// An open file that has no name any more.
class NamelessFile {
 public:
  NamelessFile(const std::filesystem::path& folder, int64_t bytes) {
    std::string name = (folder / ".ringlet-offload-XXXXXX").string();
    number_ = mkostemp(name.data(), O_CLOEXEC);
    if (number_ < 0) fail_at(folder, errno);
    unlink(name.c_str());
    // Now rather than in the middle of a step.
    const int error = bytes > 0 ? posix_fallocate(number_, 0, bytes) : 0;
    if (error == 0) return;
    close(number_);
    fail_at(folder, error, fmt::format(" for {} bytes", bytes));
  }
  ~NamelessFile() { close(number_); }
  NamelessFile(const NamelessFile&) = delete;
  NamelessFile& operator=(const NamelessFile&) = delete;
  int get() const { return number_; }

 private:
  [[noreturn]] static void fail_at(const std::filesystem::path& folder, int error, const std::string& what = "") {
    throw Error(fmt::format("no file to offload to in '{}'{}: {}", folder.string(), what, std::strerror(error)),
                "name a folder with room on a fast disk as memory.offload, or \"\" for none");
  }
  int number_ = -1;
};

class FileOffload final : public Offload, private Timeline {
 public:
  FileOffload(const std::filesystem::path& folder, int64_t bytes, Trace& trace)
      : file_(folder, bytes), trace_(trace), worker_([this] { work(); }) {}
  ~FileOffload() override {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  Event put(const Tensor& from, int64_t offset, Event after) override {
    return start({from.data, from.bytes(), offset, after, Copy::Direction::out});
  }
  Event fetch(int64_t offset, const Tensor& to, Event after) override {
    return start({to.data, to.bytes(), offset, after, Copy::Direction::in});
  }

 private:
  struct Copy {
    std::byte* data;
    int64_t bytes, offset;
    Event after;
    enum class Direction : uint8_t { out, in } direction;
  };

  Event start(const Copy& copy) {
    const std::lock_guard lock(mutex_);
    waiting_.push_back(copy);
    changed_.notify_all();
    return {this, ++started_};
  }

  bool reached(int64_t value) const override {
    const std::lock_guard lock(mutex_);
    return done_ >= value;
  }

  bool is_of_ranks() const override { return false; }

  void wait(int64_t value) override {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kPatience, [&] { return done_ >= value || failure_; })) trace_.sign_of_life();
    if (done_ < value) std::rethrow_exception(failure_);
  }

  void work() {
    use_all_cores();
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ended_ || !waiting_.empty(); });
      if (ended_) return;
      const Copy copy = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      try {
        copy.after.wait();
        run(copy);
      } catch (...) {
        lock.lock();
        failure_ = std::current_exception();
        changed_.notify_all();
        return;
      }
      lock.lock();
      ++done_;
      changed_.notify_all();
    }
  }

  void run(const Copy& copy) const {
    const bool out = copy.direction == Copy::Direction::out;
    for (int64_t done = 0; done < copy.bytes;) {
      const auto left = size_t(copy.bytes - done);
      const ssize_t moved = out ? pwrite(file_.get(), copy.data + done, left, copy.offset + done)
                                : pread(file_.get(), copy.data + done, left, copy.offset + done);
      if (moved < 0 && errno == EINTR) continue;
      if (moved <= 0) {
        throw Error(fmt::format("offloaded tensors cannot be {}: {}", out ? "written" : "read",
                                moved < 0 ? std::strerror(errno) : "the file ends too early"),
                    "check the disk of memory.offload; the last checkpoint is whole, go on with --resume");
      }
      done += moved;
    }
  }

  const NamelessFile file_;
  Trace& trace_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Copy> waiting_;
  int64_t started_ = 0, done_ = 0;
  std::exception_ptr failure_;
  bool ended_ = false;
  std::thread worker_;  // last: it uses all of the above
};

}  // namespace

std::unique_ptr<Offload> make_file_offload(const std::filesystem::path& folder, int64_t bytes, Trace& trace) {
  return std::make_unique<FileOffload>(folder, bytes, trace);
}

}  // namespace ringlet
