#include "tests/support/deferred_backend.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/random.h"

namespace ringlet::test {
namespace {

using Task = std::function<void()>;

/// Runs tasks in order on one thread; its timeline counts the tasks done.
class TaskQueue final : public Timeline {
 public:
  explicit TaskQueue(DeferredOptions options)
      : options_(options), delays_(options.seed, hash_name("delays")), worker_([this] { run(); }) {}

  ~TaskQueue() override {
    {
      const std::lock_guard lock(mutex_);
      closing_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  void push(Task task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
      ++pushed_;
    }
    changed_.notify_all();
  }

  Event end() {
    const std::lock_guard lock(mutex_);
    return {this, pushed_};
  }

  bool reached(int64_t value) const override {
    const std::lock_guard lock(mutex_);
    if (done_ < value && failure_) std::rethrow_exception(failure_);
    return done_ >= value;
  }

  void wait(int64_t value) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done_ >= value || failure_; });
    if (done_ < value) std::rethrow_exception(failure_);
  }

 private:
  void run() {
    for (int64_t index = 0;; ++index) {
      Task task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return closing_ || !tasks_.empty(); });
        if (tasks_.empty()) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
        if (failure_) continue;
      }
      delay(index);
      run_one(task);
    }
  }

  void run_one(const Task& task) {
    std::exception_ptr failure;
    try {
      task();
    } catch (...) {
      failure = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      failure_ = failure;
      if (!failure) ++done_;
    }
    changed_.notify_all();
  }

  void delay(int64_t index) const {
    const uint64_t bits = delays_.bits(index);
    if (options_.delays == Delays::none || bits % 8 != 0) return;
    std::this_thread::sleep_for(std::chrono::microseconds(bits / 8 % 200));
  }

  const DeferredOptions options_;
  const CounterRandom delays_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  int64_t pushed_ = 0, done_ = 0;
  bool closing_ = false;
  std::exception_ptr failure_;
  std::thread worker_;
};

std::vector<Piece> copied(std::span<const Piece> pieces) { return {pieces.begin(), pieces.end()}; }

/// Each operation takes its arguments along, with what they point to, and runs later.
class DeferredBackend final : public Backend {
 public:
  DeferredBackend(int64_t arena_bytes, Trace& trace, DeferredOptions options)
      : device_(make_cpu_backend(arena_bytes, trace)), queue_(options) {}

  Arena& arena() override { return device_->arena(); }
  Event record() override { return queue_.end(); }
  void synchronize() override { queue_.end().wait(); }

  void upload(std::span<const std::byte> host, const Tensor& to) override {
    queue_.push([=, this, bytes = std::vector<std::byte>(host.begin(), host.end())] {
      device_->upload(bytes, to);
    });
  }
  void read(const Tensor& from, std::span<std::byte> host) override {
    synchronize();
    device_->read(from, host);
  }
  void fill(float value, const Tensor& to) override {
    queue_.push([=, this] { device_->fill(value, to); });
  }
  void copy(const Tensor& from, const Tensor& to) override {
    queue_.push([=, this] { device_->copy(from, to); });
  }
  void add(const Tensor& from, const Tensor& to) override {
    queue_.push([=, this] { device_->add(from, to); });
  }
  void copy_rows(const Tensor& from, int64_t first_row, const Tensor& to) override {
    queue_.push([=, this] { device_->copy_rows(from, first_row, to); });
  }
  void matmul(const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
              Write write, const Tensor& out) override {
    queue_.push([=, this] { device_->matmul(a, transpose_a, b, transpose_b, write, out); });
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float epsilon,
                        const Tensor& y) override {
    queue_.push([=, this] { device_->rms_norm_forward(x, weight, epsilon, y); });
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& dy,
                         Write write, const Tensor& dx, const Tensor& d_weight) override {
    queue_.push(
        [=, this] { device_->rms_norm_backward(x, weight, epsilon, dy, write, dx, d_weight); });
  }
  void rotary_table(std::span<const Piece> pieces, double base, const Tensor& table) override {
    queue_.push([=, this, own = copied(pieces)] { device_->rotary_table(own, base, table); });
  }
  void qkv_split_forward(const QkvSplit& split, const Tensor& qkv, const Tensor& q,
                         const Tensor& kv) override {
    queue_.push([=, this, own = copied(split.pieces)] {
      QkvSplit later = split;
      later.pieces = own;
      device_->qkv_split_forward(later, qkv, q, kv);
    });
  }
  void qkv_split_backward(const QkvSplit& split, const Tensor& qkv, const Tensor& dq,
                          const Tensor& dkv, const Tensor& d_qkv, const Tensor& d_q_norm,
                          const Tensor& d_k_norm) override {
    queue_.push([=, this, own = copied(split.pieces)] {
      QkvSplit later = split;
      later.pieces = own;
      device_->qkv_split_backward(later, qkv, dq, dkv, d_qkv, d_q_norm, d_k_norm);
    });
  }

  void attention_start(const AttentionState& state) override {
    queue_.push([=, this] { device_->attention_start(state); });
  }
  void attention_forward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                         const AttentionState& state) override {
    queue_.push([=, this] { device_->attention_forward(step, q, kv, state); });
  }
  void attention_finish(const HeadShape& shape, const AttentionState& state, const Tensor& output,
                        const Tensor& lse) override {
    queue_.push([=, this] { device_->attention_finish(shape, state, output, lse); });
  }
  void attention_delta(const HeadShape& shape, const Tensor& output, const Tensor& d_output,
                       const Tensor& delta) override {
    queue_.push([=, this] { device_->attention_delta(shape, output, d_output, delta); });
  }
  void attention_backward(const AttentionStep& step, const Tensor& q, const Tensor& kv,
                          const AttentionGradient& gradient, const Tensor& dq, Write write,
                          const Tensor& dkv) override {
    queue_.push([=, this] { device_->attention_backward(step, q, kv, gradient, dq, write, dkv); });
  }

  void swiglu_forward(const Tensor& gate_up, const Tensor& y) override {
    queue_.push([=, this] { device_->swiglu_forward(gate_up, y); });
  }
  void swiglu_backward(const Tensor& gate_up, const Tensor& dy, const Tensor& d_gate_up) override {
    queue_.push([=, this] { device_->swiglu_backward(gate_up, dy, d_gate_up); });
  }
  void embedding_forward(const Tensor& tokens, const Tensor& table, const Tensor& y) override {
    queue_.push([=, this] { device_->embedding_forward(tokens, table, y); });
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& d_table) override {
    queue_.push([=, this] { device_->embedding_backward(tokens, dy, d_table); });
  }
  void cross_entropy(const Tensor& logits, const Tensor& labels, CrossEntropy mode,
                     float gradient_scale, const Tensor& losses) override {
    queue_.push(
        [=, this] { device_->cross_entropy(logits, labels, mode, gradient_scale, losses); });
  }
  void sum_of_squares(const Tensor& x, const Tensor& result) override {
    queue_.push([=, this] { device_->sum_of_squares(x, result); });
  }
  void adamw(const AdamW& settings, const Tensor& gradient, const Tensor& weights,
             const Tensor& first_moment, const Tensor& second_moment, const Tensor& rounded) override {
    queue_.push(
        [=, this] { device_->adamw(settings, gradient, weights, first_moment, second_moment, rounded); });
  }

 private:
  /// Not the inner device's wait: that would release memory of the arena, which belongs to the host thread.
  void queue_wait(Event event) override {
    queue_.push([event] { event.wait(); });
  }

  std::unique_ptr<Backend> device_;
  TaskQueue queue_;  // last: it is emptied before the device goes
};

}  // namespace

std::unique_ptr<Backend> make_deferred_backend(int64_t arena_bytes, Trace& trace,
                                               DeferredOptions options) {
  return std::make_unique<DeferredBackend>(arena_bytes, trace, options);
}

}  // namespace ringlet::test
