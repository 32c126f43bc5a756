#include "kernels/comm/threads_operation.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

namespace ringlet::threads {
namespace {

constexpr int64_t kSumBlock = 4096;  // elements: the running sum stays in the nearest cache
constexpr int64_t kCopyBlock = 1 << 20;  // bytes: a failure is noticed within a millisecond

std::string describe(const Tensor& tensor) {
  return fmt::format("{} {} values", tensor.size(), name_of(tensor.dtype));
}

bool fits(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.size() == b.size();
}

void copy(const Tensor& from, const Tensor& to, const std::atomic<bool>& abandoned) {
  if (from.data == to.data) return;
  for (int64_t first = 0; first < from.bytes() && !abandoned; first += kCopyBlock) {
    const int64_t count = std::min(kCopyBlock, from.bytes() - first);
    std::memcpy(to.data + first, from.data + first, static_cast<size_t>(count));
  }
}

/// The rank-th of `parts` equal runs of elements.
Tensor part_of(const Tensor& values, size_t rank, size_t parts) {
  const int64_t count = values.size() / static_cast<int64_t>(parts);
  return values.reshaped({values.size(), 1, 1, 1}).slice(static_cast<int64_t>(rank) * count, count);
}

/// sum[i] = ((input of rank 0)[first + i] + rank 1's) + ...: always in rank order.
template <class T>
void sum_block(const std::vector<Part>& parts, int64_t first, int64_t count, T* sum) {
  const auto input = [first](const Part& part) {
    return reinterpret_cast<const T*>(part.input.data) + first;
  };
  std::copy_n(input(parts[0]), count, sum);
  for (size_t rank = 1; rank < parts.size(); ++rank) {
    const T* values = input(parts[rank]);
    for (int64_t i = 0; i < count; ++i) sum[i] += values[i];
  }
}

/// Calls use(first, count, sum) for each block of the sum of [first, first + size).
template <class T, class Use>
void each_sum_block(const Operation& operation, int64_t begin, int64_t size,
                    const std::atomic<bool>& abandoned, const Use& use) {
  T sum[kSumBlock];
  for (int64_t first = 0; first < size && !abandoned; first += kSumBlock) {
    const int64_t count = std::min(kSumBlock, size - first);
    sum_block(operation.parts, begin + first, count, sum);
    use(first, count, sum);
  }
}

template <class T>
void store(const T* sum, int64_t count, const Tensor& to, int64_t first) {
  std::copy_n(sum, count, reinterpret_cast<T*>(to.data) + first);
}

template <class T>
void all_reduce(const Operation& operation, const std::atomic<bool>& abandoned) {
  if (operation.parts.size() == 1) return;
  const auto to_all = [&](int64_t first, int64_t count, const T* sum) {
    for (const Part& part : operation.parts) store(sum, count, part.output, first);
  };
  each_sum_block<T>(operation, 0, operation.parts[0].input.size(), abandoned, to_all);
}

template <class T>
void reduce_scatter(const Operation& operation, const std::atomic<bool>& abandoned) {
  const int64_t size = operation.parts[0].output.size();
  for (size_t rank = 0; rank < operation.parts.size(); ++rank) {
    const Tensor& shard = operation.parts[rank].output;
    const auto to_shard = [&](int64_t first, int64_t count, const T* sum) {
      store(sum, count, shard, first);
    };
    each_sum_block<T>(operation, static_cast<int64_t>(rank) * size, size, abandoned, to_shard);
  }
}

void all_gather(const Operation& operation, const std::atomic<bool>& abandoned) {
  const size_t ranks = operation.parts.size();
  for (size_t source = 0; source < ranks; ++source) {
    for (const Part& part : operation.parts) {
      copy(operation.parts[source].input, part_of(part.output, source, ranks), abandoned);
    }
  }
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

void perform(const Operation& operation, const std::atomic<bool>& abandoned) {
  const Part& first = operation.parts[0];
  const bool is_double = first.input.dtype == Dtype::f64;
  switch (operation.kind) {
    case Kind::message: return copy(first.input, operation.parts[1].output, abandoned);
    case Kind::all_reduce:
      return is_double ? all_reduce<double>(operation, abandoned)
                       : all_reduce<float>(operation, abandoned);
    case Kind::reduce_scatter:
      return is_double ? reduce_scatter<double>(operation, abandoned)
                       : reduce_scatter<float>(operation, abandoned);
    case Kind::all_gather: return all_gather(operation, abandoned);
    case Kind::broadcast:
      for (const Part& part : operation.parts) {
        copy(operation.parts[static_cast<size_t>(first.root)].input, part.output, abandoned);
      }
      return;
    case Kind::barrier: return;
  }
}

}  // namespace ringlet::threads
