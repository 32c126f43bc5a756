#include "kernels/comm/launcher.h"

#include <charconv>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include "kernels/check.h"

namespace ringlet {
namespace {

constexpr int kDefaultPort = 29'400;
constexpr int kFirstJobPort = 20'000, kJobPorts = 9'000;  // below the ports that systems give out by themselves

/// The variables of one launcher; null where it has none.
struct Names {
  const char *launcher, *rank, *size, *local_rank, *local_size;
};

constexpr Names kLaunchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    // Not SLURM_NTASKS: a batch script has that too, and runs once. srun alone sets the number of tasks of a step.
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr},
};

/// Throws UsageError unless the variable is a number in [least, limit).
int number(const Environment& environment, const char* name, int64_t least, int64_t limit) {
  const char* text = environment(name);
  if (text == nullptr) throw UsageError(fmt::format("the launcher has not set {}", name));
  int64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, failure] = std::from_chars(text, end, value);
  if (failure != std::errc() || stop != end || value < least || value >= limit) {
    throw UsageError(fmt::format("{}={} is not a number from {} to {}", name, text, least, limit - 1));
  }
  return static_cast<int>(value);
}

std::string slurm_address(const Environment& environment) {
  const char* nodes = environment("SLURM_STEP_NODELIST");
  if (nodes == nullptr || environment("SLURM_JOB_ID") == nullptr) return "";
  const int job = number(environment, "SLURM_JOB_ID", 0, INT32_MAX);
  return fmt::format("{}:{}", first_node(nodes), kFirstJobPort + job % kJobPorts);
}

/// torchrun itself listens on the port that it gives out, for libraries that can use its store.
int free_port(const Environment& environment, int port) {
  const char* used = environment("TORCHELASTIC_USE_AGENT_STORE");
  if (used == nullptr || std::strcmp(used, "True") != 0) return port;
  return port < 65'535 ? port + 1 : port - 1;
}

std::string find_address(const Environment& environment, const Names& names, int size) {
  const char* host = environment("MASTER_ADDR");
  if (host != nullptr && environment("MASTER_PORT") != nullptr) {
    return fmt::format("{}:{}", host, free_port(environment, number(environment, "MASTER_PORT", 1, 65'536)));
  }
  if (std::strcmp(names.launcher, "srun") == 0) return slurm_address(environment);
  const bool is_local = names.local_size != nullptr && environment(names.local_size) != nullptr &&
                        number(environment, names.local_size, 1, INT32_MAX) == size;
  return is_local ? fmt::format("127.0.0.1:{}", kDefaultPort) : "";
}

}  // namespace

std::optional<Launch> find_launch(const Environment& environment) {
  for (const Names& names : kLaunchers) {
    if (environment(names.rank) == nullptr || environment(names.size) == nullptr) continue;
    // srun's own PMI sets the first two as well.
    if (std::strcmp(names.rank, "PMI_RANK") == 0 && environment(names.local_rank) == nullptr) continue;
    Launch launch;
    launch.launcher = names.launcher;
    launch.size = number(environment, names.size, 1, INT32_MAX);
    launch.rank = number(environment, names.rank, 0, launch.size);
    launch.local_rank = number(environment, names.local_rank, 0, launch.size);
    launch.address = find_address(environment, names, launch.size);
    return launch;
  }
  return std::nullopt;
}

std::optional<Launch> find_launch() {
  return find_launch([](const char* name) -> const char* { return std::getenv(name); });
}

std::string first_node(const std::string& node_list) {
  const size_t end = node_list.find_first_of(",[");
  const std::string name = node_list.substr(0, end);
  if (end == std::string::npos || node_list[end] == ',') return name;
  const size_t number_end = node_list.find_first_of(",-]", end);
  const std::string number = node_list.substr(end + 1, number_end - end - 1);
  // What stands behind the bracket belongs to the name of each node.
  const size_t close = node_list.find(']', end);
  if (close == std::string::npos) return name + number;
  return name + number + node_list.substr(close + 1, node_list.find_first_of(",[", close) - close - 1);
}

}  // namespace ringlet
