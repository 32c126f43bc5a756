#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace ringlet {

struct RendezvousOptions {
  /// host:port, or [IPv6 address]:port, where rank 0 listens: on all of its networks unless that is loopback.
  std::string address;
  int rank = 0, size = 1;
  std::chrono::milliseconds timeout{60'000};  // for all ranks to come
};

/// Gives `of_rank_0` of rank 0 to every rank, over TCP: what processes say to each other before they have a
/// Comm. Rank 0 returns when all have been served, the others when they have the bytes; they may come before
/// rank 0 does. Collective; waits. Who speaks another language on rank 0's port is sent away. Throws Error that
/// names the address when nobody answers there, something else does, ranks stay away (rank 0 names them), two say
/// that they are the same, or sizes differ.
std::vector<std::byte> share_bytes(const RendezvousOptions& options, std::span<const std::byte> of_rank_0);

}  // namespace ringlet
