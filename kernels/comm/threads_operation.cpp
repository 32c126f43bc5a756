#include "kernels/comm/threads_operation.h"

#include <fmt/format.h>

namespace ringlet::threads {
namespace {

std::string describe(const Tensor& tensor) {
  return fmt::format("{} {} values", tensor.size(), name_of(tensor.dtype));
}

bool fits(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.size() == b.size();
}

/// The rank-th of `parts` equal runs of elements.
Tensor part_of(const Tensor& values, size_t rank, size_t parts) {
  const int64_t count = values.size() / static_cast<int64_t>(parts);
  return values.reshaped({values.size(), 1, 1, 1}).slice(static_cast<int64_t>(rank) * count, count);
}

void check_message(const Part& sender, const Part& receiver) {
  if (fits(sender.input, receiver.output)) return;
  throw Error(fmt::format("rank {} sends {} to rank {}, which expects {}", sender.world_rank,
                          describe(sender.input), receiver.world_rank, describe(receiver.output)));
}

}  // namespace

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::message: return "exchange";
    case Kind::all_reduce: return "all_reduce";
    case Kind::reduce_scatter: return "reduce_scatter";
    case Kind::all_gather: return "all_gather";
    case Kind::broadcast: return "broadcast";
    case Kind::barrier: return "barrier";
  }
  return "unknown";
}

void check_parts(const Operation& operation) {
  const Part& first = operation.parts[0];
  if (operation.kind == Kind::message) return check_message(first, operation.parts[1]);
  for (const Part& part : operation.parts) {
    if (!fits(first.input, part.input)) {
      throw Error(fmt::format("{} of {} on rank {}, of {} on rank {}", name_of(operation.kind),
                              describe(first.input), first.world_rank, describe(part.input),
                              part.world_rank));
    }
    if (first.root != part.root) {
      throw Error(fmt::format("broadcast from root {} on rank {}, from {} on rank {}", first.root,
                              first.world_rank, part.root, part.world_rank));
    }
  }
}

void Performer::perform(Kind kind, std::span<const Part> parts, const std::atomic<bool>& abandoned) {
  switch (kind) {
    case Kind::message: return memory_.copy(parts[0].input, parts[1].output, abandoned);
    case Kind::all_reduce: return all_reduce(parts, abandoned);
    case Kind::reduce_scatter: return reduce_scatter(parts, abandoned);
    case Kind::all_gather: return all_gather(parts, abandoned);
    case Kind::broadcast: return broadcast(parts, abandoned);
    case Kind::barrier: return;
  }
}

void Performer::all_reduce(std::span<const Part> parts, const std::atomic<bool>& abandoned) {
  if (parts.size() == 1) return;
  inputs_.clear();
  outputs_.clear();
  for (const Part& part : parts) {
    inputs_.push_back(part.input);
    outputs_.push_back(part.output);
  }
  memory_.sum(inputs_, outputs_, abandoned);
}

void Performer::reduce_scatter(std::span<const Part> parts, const std::atomic<bool>& abandoned) {
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    inputs_.clear();
    for (const Part& source : parts) inputs_.push_back(part_of(source.input, rank, parts.size()));
    memory_.sum(inputs_, {&parts[rank].output, 1}, abandoned);
  }
}

void Performer::all_gather(std::span<const Part> parts, const std::atomic<bool>& abandoned) {
  for (size_t source = 0; source < parts.size(); ++source) {
    for (const Part& part : parts) {
      memory_.copy(parts[source].input, part_of(part.output, source, parts.size()), abandoned);
    }
  }
}

void Performer::broadcast(std::span<const Part> parts, const std::atomic<bool>& abandoned) {
  const Part& root = parts[static_cast<size_t>(parts[0].root)];
  for (const Part& part : parts) memory_.copy(root.input, part.output, abandoned);
}

}  // namespace ringlet::threads
