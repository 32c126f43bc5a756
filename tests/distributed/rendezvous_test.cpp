// Processes find each other over TCP; whatever goes wrong ends in time, with an error that names the address.
#include "kernels/comm/rendezvous.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <thread>

#include "kernels/check.h"

namespace ringlet::test {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

std::vector<std::byte> bytes_of(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// A socket of this machine: bound to a port that was free.
struct BoundPort {
  BoundPort() : handle(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    bind(handle, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    socklen_t length = sizeof(address);
    getsockname(handle, reinterpret_cast<sockaddr*>(&address), &length);
    port = ntohs(address.sin_port);
  }
  ~BoundPort() { close(handle); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port); }
  int handle, port = 0;
};

std::string free_address() { return BoundPort().address(); }

/// The error's text; empty if there was none.
std::string failure_of(const RendezvousOptions& options, const std::string& text = "") {
  try {
    share_bytes(options, bytes_of(text));
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

/// Sends text to a port of this machine.
int speak(int port, const std::string& text) {
  const int handle = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(uint16_t(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  while (connect(handle, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(send(handle, text.data(), text.size(), MSG_NOSIGNAL), ssize_t(text.size()));
  return handle;
}

class RendezvousTest : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, RendezvousTest, testing::Values(1, 2, 4, 9));

TEST_P(RendezvousTest, EveryRankGetsTheBytesOfRank0) {
  const std::string address = free_address();
  std::vector<std::vector<std::byte>> got(static_cast<size_t>(GetParam()));
  std::vector<std::thread> ranks;
  for (int rank = GetParam() - 1; rank >= 0; --rank) {  // rank 0 comes last
    ranks.emplace_back([&, rank] {
      got[size_t(rank)] = share_bytes({address, rank, GetParam(), 20s}, bytes_of("of " + std::to_string(rank)));
    });
    std::this_thread::sleep_for(20ms);
  }
  for (std::thread& rank : ranks) rank.join();
  for (const auto& bytes : got) EXPECT_EQ(bytes, bytes_of("of 0"));
}

TEST(Rendezvous, ProcessesMeet) {
  const std::string address = free_address();
  const pid_t child = fork();
  if (child == 0) _exit(share_bytes({address, 1, 2, 20s}, {}) == bytes_of("id") ? 0 : 1);
  EXPECT_EQ(share_bytes({address, 0, 2, 20s}, bytes_of("id")), bytes_of("id"));
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Rendezvous, ARankThatFindsNobodyNamesTheAddress) {
  const std::string address = free_address();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(failure_of({address, 1, 2, 200ms}),
              testing::AllOf(HasSubstr(address), HasSubstr("rank 1 found nobody within 0.2 s")));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
}

TEST(Rendezvous, Rank0NamesThoseWhoStayAway) {
  const std::string address = free_address();
  std::thread other([&] { failure_of({address, 2, 4, 20s}); });
  EXPECT_THAT(failure_of({address, 0, 4, 500ms}),
              testing::AllOf(HasSubstr(address), HasSubstr("rank 1, 3 of 4 has not come")));
  other.join();
}

TEST(Rendezvous, AForeignServiceIsNoRank0) {
  BoundPort foreign;
  listen(foreign.handle, 1);
  std::thread service([&] {
    const int handle = accept(foreign.handle, nullptr, nullptr);
    const std::string text = "220 mail.example.org ready, and more than enough bytes for an answer\r\n";
    send(handle, text.data(), text.size(), MSG_NOSIGNAL);
    close(handle);
  });
  EXPECT_THAT(failure_of({foreign.address(), 1, 2, 5s}), HasSubstr("no answer that a rank 0 would give"));
  service.join();
}

TEST(Rendezvous, AServiceThatSaysNothingEndsInTime) {
  BoundPort silent;
  listen(silent.handle, 1);
  EXPECT_THAT(failure_of({silent.address(), 1, 2, 200ms}), HasSubstr(silent.address()));
}

TEST(Rendezvous, Rank0SendsStrangersAway) {
  const std::string address = free_address();
  const int port = std::stoi(address.substr(address.find(':') + 1));
  std::vector<std::byte> got;
  std::thread others([&] {
    const int stranger = speak(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    got = share_bytes({address, 1, 2, 20s}, {});
    close(stranger);
  });
  share_bytes({address, 0, 2, 20s}, bytes_of("id"));
  others.join();
  EXPECT_EQ(got, bytes_of("id"));
}

TEST(Rendezvous, SizesThatDifferAreAnErrorOnBothSides) {
  const std::string address = free_address();
  std::string of_other;
  std::thread other([&] { of_other = failure_of({address, 1, 3, 20s}); });
  EXPECT_THAT(failure_of({address, 0, 2, 20s}), HasSubstr("rank 1 is one of 3 ranks, rank 0 one of 2"));
  other.join();
  EXPECT_THAT(of_other, HasSubstr("rank 1 is one of 3 ranks, rank 0 one of 2"));
}

TEST(Rendezvous, TwoOfTheSameRankAreAnError) {
  const std::string address = free_address();
  std::thread first([&] { failure_of({address, 1, 3, 20s}); });
  std::thread second([&] { failure_of({address, 1, 3, 20s}); });
  EXPECT_THAT(failure_of({address, 0, 3, 20s}), HasSubstr("two processes are rank 1"));
  first.join();
  second.join();
}

TEST(Rendezvous, APortInUseIsAnError) {
  BoundPort taken;
  listen(taken.handle, 1);
  EXPECT_THAT(failure_of({taken.address(), 0, 2, 1s}), HasSubstr("rank 0 cannot listen"));
}

TEST(Rendezvous, AnAddressWithoutPortIsRefused) {
  EXPECT_THROW(share_bytes({"somewhere", 1, 2, 1s}, {}), UsageError);
}

}  // namespace
}  // namespace ringlet::test
