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

void all_reduce(const Operation& operation, RankMemory& memory, const std::atomic<bool>& abandoned) {
  if (operation.parts.size() == 1) return;
  std::vector<Tensor> inputs, outputs;
  for (const Part& part : operation.parts) {
    inputs.push_back(part.input);
    outputs.push_back(part.output);
  }
  memory.sum(inputs, outputs, abandoned);
}

void reduce_scatter(const Operation& operation, RankMemory& memory, const std::atomic<bool>& abandoned) {
  const size_t ranks = operation.parts.size();
  std::vector<Tensor> inputs(ranks);
  for (size_t rank = 0; rank < ranks; ++rank) {
    for (size_t source = 0; source < ranks; ++source) {
      inputs[source] = part_of(operation.parts[source].input, rank, ranks);
    }
    memory.sum(inputs, {&operation.parts[rank].output, 1}, abandoned);
  }
}

void all_gather(const Operation& operation, RankMemory& memory, const std::atomic<bool>& abandoned) {
  const size_t ranks = operation.parts.size();
  for (size_t source = 0; source < ranks; ++source) {
    for (const Part& part : operation.parts) {
      memory.copy(operation.parts[source].input, part_of(part.output, source, ranks), abandoned);
    }
  }
}

void broadcast(const Operation& operation, RankMemory& memory, const std::atomic<bool>& abandoned) {
  const Part& root = operation.parts[static_cast<size_t>(operation.parts[0].root)];
  for (const Part& part : operation.parts) memory.copy(root.input, part.output, abandoned);
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

void perform(const Operation& operation, RankMemory& memory, const std::atomic<bool>& abandoned) {
  const std::vector<Part>& parts = operation.parts;
  switch (operation.kind) {
    case Kind::message: return memory.copy(parts[0].input, parts[1].output, abandoned);
    case Kind::all_reduce: return all_reduce(operation, memory, abandoned);
    case Kind::reduce_scatter: return reduce_scatter(operation, memory, abandoned);
    case Kind::all_gather: return all_gather(operation, memory, abandoned);
    case Kind::broadcast: return broadcast(operation, memory, abandoned);
    case Kind::barrier: return;
  }
}

}  // namespace ringlet::threads
