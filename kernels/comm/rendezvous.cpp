#include "kernels/comm/rendezvous.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "kernels/check.h"

namespace ringlet {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kRetry{50};
/// How long rank 0 listens to one that says nothing, while others may wait behind it.
constexpr milliseconds kPatience{2000};
constexpr uint64_t kMagic = 0x31'74'65'6c'67'6e'69'72;  // "ringlet1"
constexpr uint32_t kLongestMessage = 1 << 20;

struct Hello {
  uint64_t magic = kMagic;
  int32_t rank = 0, size = 0;
};
/// Followed by so many bytes: rank 0's, or why it refuses.
struct Answer {
  uint64_t magic = kMagic;
  uint32_t refused = 0, bytes = 0;
};

class Socket {
 public:
  explicit Socket(int handle = -1) : handle_(handle) {}
  ~Socket() { if (handle_ >= 0) close(handle_); }
  Socket(Socket&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}
  Socket& operator=(Socket&& other) noexcept { std::swap(handle_, other.handle_); return *this; }
  int handle() const { return handle_; }
  explicit operator bool() const { return handle_ >= 0; }

  /// For connect, send and receive.
  void set_timeout(milliseconds timeout) const {
    const int64_t count = std::max<int64_t>(timeout.count(), 1);
    const timeval value{count / 1000, count % 1000 * 1000};
    setsockopt(handle_, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof(value));
    setsockopt(handle_, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof(value));
  }

 private:
  int handle_;
};

struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};
using Addresses = std::unique_ptr<addrinfo, FreeAddresses>;

/// One rank's way through it. All errors name the address.
class Rendezvous {
 public:
  explicit Rendezvous(const RendezvousOptions& options)
      : options_(options), deadline_(Clock::now() + options.timeout) {
    const size_t colon = options.address.rfind(':');
    if (colon == std::string::npos || colon == 0 || colon + 1 == options.address.size()) {
      throw UsageError(fmt::format("rendezvous address \"{}\" is not host:port", options.address));
    }
    host_ = options.address.substr(0, colon);
    if (host_.front() == '[' && host_.back() == ']') host_ = host_.substr(1, host_.size() - 2);
    port_ = options.address.substr(colon + 1);
  }

  std::vector<std::byte> serve(std::span<const std::byte> bytes) const;
  std::vector<std::byte> ask() const;

 private:
  [[noreturn]] void give_up(const std::string& cause, const std::string& advice = {}) const {
    throw Error(fmt::format("rendezvous at {}: {}", options_.address, cause), advice);
  }
  milliseconds time_left() const {
    return std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline_ - Clock::now()));
  }
  double timeout_seconds() const { return std::chrono::duration<double>(options_.timeout).count(); }
  Addresses resolve(bool to_listen) const;
  Socket listen_there() const;
  Socket connect_there() const;
  Socket accept_one(const Socket& listener) const;
  std::string objection(const Hello& hello, const std::vector<bool>& served) const;
  bool receive(const Socket& socket, void* data, size_t bytes, milliseconds patience) const;
  bool send(const Socket& socket, std::span<const std::byte> data) const;
  void answer(const Socket& socket, uint32_t refused, std::span<const std::byte> bytes) const;

  const RendezvousOptions& options_;
  const Clock::time_point deadline_;
  std::string host_, port_;
};

Addresses Rendezvous::resolve(bool to_listen) const {
  // A machine's own name often stands for a loopback address on itself: it listens on all networks then.
  const bool is_loopback = host_ == "localhost" || host_.starts_with("127.") || host_ == "::1";
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = to_listen ? AI_PASSIVE : 0;
  if (to_listen && !is_loopback && host_.find(':') == std::string::npos) hints.ai_family = AF_INET;
  addrinfo* found = nullptr;
  const char* host = to_listen && !is_loopback ? nullptr : host_.c_str();
  if (const int status = getaddrinfo(host, port_.c_str(), &hints, &found)) {
    give_up(gai_strerror(status), "The address has to be host:port of the machine of rank 0.");
  }
  return Addresses(found);
}

Socket Rendezvous::listen_there() const {
  const Addresses addresses = resolve(true);
  int failure = 0;
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    Socket socket(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!socket) { failure = errno; continue; }
    const int yes = 1;
    setsockopt(socket.handle(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (bind(socket.handle(), address->ai_addr, address->ai_addrlen) == 0 &&
        listen(socket.handle(), SOMAXCONN) == 0) {
      return socket;
    }
    failure = errno;
  }
  give_up(fmt::format("rank 0 cannot listen: {}", std::strerror(failure)), "Choose another port.");
}

Socket Rendezvous::connect_there() const {
  const Addresses addresses = resolve(false);
  int failure = 0;
  do {
    for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
      Socket socket(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (!socket) { failure = errno; continue; }
      socket.set_timeout(time_left());
      if (connect(socket.handle(), address->ai_addr, address->ai_addrlen) == 0) return socket;
      failure = errno == EINPROGRESS ? ETIMEDOUT : errno;
    }
    std::this_thread::sleep_for(std::min(kRetry, time_left()));  // rank 0 may not have come yet
  } while (time_left().count() > 0);
  give_up(fmt::format("rank {} found nobody within {} s: {}", options_.rank, timeout_seconds(), std::strerror(failure)),
          "Is rank 0 running, and may this machine reach that port?");
}

Socket Rendezvous::accept_one(const Socket& listener) const {
  pollfd waiting{listener.handle(), POLLIN, 0};
  if (poll(&waiting, 1, static_cast<int>(std::min<int64_t>(time_left().count(), INT32_MAX))) <= 0) return Socket();
  return Socket(accept4(listener.handle(), nullptr, nullptr, SOCK_CLOEXEC));
}

bool Rendezvous::receive(const Socket& socket, void* data, size_t bytes, milliseconds patience) const {
  const Clock::time_point end = Clock::now() + patience;
  for (size_t done = 0; done < bytes;) {
    const milliseconds left = std::chrono::ceil<milliseconds>(end - Clock::now());
    if (left.count() <= 0) return false;
    socket.set_timeout(left);
    const ssize_t count = recv(socket.handle(), static_cast<std::byte*>(data) + done, bytes - done, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

bool Rendezvous::send(const Socket& socket, std::span<const std::byte> data) const {
  socket.set_timeout(kPatience);
  while (!data.empty()) {
    const ssize_t count = ::send(socket.handle(), data.data(), data.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    data = data.subspan(static_cast<size_t>(count));
  }
  return true;
}

void Rendezvous::answer(const Socket& socket, uint32_t refused, std::span<const std::byte> bytes) const {
  Answer head;
  head.refused = refused;
  head.bytes = static_cast<uint32_t>(bytes.size());
  if (send(socket, std::as_bytes(std::span(&head, 1)))) send(socket, bytes);
}

/// Why this one cannot be served; empty if it can.
std::string Rendezvous::objection(const Hello& hello, const std::vector<bool>& served) const {
  if (hello.size != options_.size) {
    return fmt::format("rank {} is one of {} ranks, rank 0 one of {}", hello.rank, hello.size, options_.size);
  }
  if (hello.rank < 1 || hello.rank >= options_.size) return fmt::format("there is no rank {}", hello.rank);
  if (served[static_cast<size_t>(hello.rank)]) return fmt::format("two processes are rank {}", hello.rank);
  return "";
}

std::vector<std::byte> Rendezvous::serve(std::span<const std::byte> bytes) const {
  const Socket listener = listen_there();
  std::vector<bool> served(static_cast<size_t>(options_.size), false);
  served[0] = true;
  while (std::ranges::count(served, false) > 0) {
    const Socket socket = accept_one(listener);
    if (time_left().count() == 0) {
      std::vector<int> missing;
      for (int rank = 0; rank < options_.size; ++rank) {
        if (!served[static_cast<size_t>(rank)]) missing.push_back(rank);
      }
      give_up(fmt::format("rank {} of {} has not come within {} s", fmt::join(missing, ", "), options_.size,
                          timeout_seconds()),
              "Are all ranks running, and may they reach that port?");
    }
    Hello hello;
    if (!socket || !receive(socket, &hello, sizeof(hello), std::min(kPatience, time_left()))) continue;
    if (hello.magic != kMagic) continue;
    const std::string reason = objection(hello, served);
    if (!reason.empty()) {
      answer(socket, 1, std::as_bytes(std::span(reason)));
      give_up(reason);
    }
    answer(socket, 0, bytes);
    served[static_cast<size_t>(hello.rank)] = true;
  }
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> Rendezvous::ask() const {
  const Socket socket = connect_there();
  Hello hello;
  hello.rank = options_.rank;
  hello.size = options_.size;
  Answer head;
  const bool answered = send(socket, std::as_bytes(std::span(&hello, 1))) &&
                        receive(socket, &head, sizeof(head), time_left());
  if (!answered || head.magic != kMagic || head.bytes > kLongestMessage) {
    give_up(fmt::format("what listens there gives rank {} no answer that a rank 0 would give", options_.rank),
            "Is the port that of another service?");
  }
  std::vector<std::byte> bytes(head.bytes);
  if (!receive(socket, bytes.data(), bytes.size(), time_left())) {
    give_up(fmt::format("rank 0 broke off its answer to rank {}", options_.rank));
  }
  if (head.refused != 0) give_up(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  return bytes;
}

}  // namespace

std::vector<std::byte> share_bytes(const RendezvousOptions& options, std::span<const std::byte> of_rank_0) {
  CHECK(options.rank >= 0 && options.rank < options.size, "rank ", options.rank, " of ", options.size);
  CHECK(of_rank_0.size() <= kLongestMessage, of_rank_0.size(), " bytes");
  if (options.size == 1) return {of_rank_0.begin(), of_rank_0.end()};
  const Rendezvous rendezvous(options);
  return options.rank == 0 ? rendezvous.serve(of_rank_0) : rendezvous.ask();
}

}  // namespace ringlet
