#include "train/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string_view>

#include "kernels/check.h"

namespace ringlet {
namespace {

std::atomic<bool> stop_asked{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may not take a lock");

void on_stop_signal(int number) {
  if (stop_asked.exchange(true)) _exit(128 + number);
  constexpr std::string_view kSaid =
      "\nasked to stop: this ends once what is under way is done; asked again, at once\n";
  const int error = errno;  // of whoever is interrupted
  [[maybe_unused]] const ssize_t ignored = write(STDERR_FILENO, kSaid.data(), kSaid.size());
  errno = error;
}

void handle(int number, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  CHECK(sigaction(number, &action, nullptr) == 0, "signal ", number);
}

}  // namespace

void install_signal_handlers() {
  handle(SIGINT, on_stop_signal);
  handle(SIGTERM, on_stop_signal);
}

void ignore_write_signals() {
  handle(SIGPIPE, SIG_IGN);
  handle(SIGXFSZ, SIG_IGN);
}

bool stop_requested() { return stop_asked; }

}  // namespace ringlet
