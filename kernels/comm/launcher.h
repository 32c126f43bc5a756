#pragma once

#include <functional>
#include <optional>
#include <string>

namespace ringlet {

/// This process's place among those that a launcher has started.
struct Launch {
  std::string launcher;  // "torchrun", "mpirun" or "srun"
  int rank = 0, size = 1;
  int local_rank = 0;   // among the processes of this machine: its GPU
  std::string address;  // host:port of rank 0's rendezvous; empty: the launcher does not tell
};

/// The value of an environment variable, or null.
using Environment = std::function<const char*(const char* name)>;

/// What the environment says: torchrun (RANK, WORLD_SIZE, LOCAL_RANK), mpirun (OMPI_COMM_WORLD_*, or PMI_* with
/// MPI_LOCALRANKID), srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID), the first of these that is there.
/// The address is MASTER_ADDR:MASTER_PORT where both are set (the port after it where torchrun's own store, as
/// TORCHELASTIC_USE_AGENT_STORE says, has that one); else 127.0.0.1 where mpirun started all processes on
/// this machine, and under srun the first node of the step with a port that the job's number decides. Absent: no
/// launcher. Throws UsageError that names the variable when one is missing, no number, or out of range.
std::optional<Launch> find_launch(const Environment& environment);
/// Of this process.
std::optional<Launch> find_launch();

/// "node[07-09,12],other" to "node07".
std::string first_node(const std::string& node_list);

}  // namespace ringlet
