#!/usr/bin/env bash
# Checks and measures the CUDA backend on a machine with a GPU. Needs no compiler there: build elsewhere, and
# carry the folder that cmake --install makes.
#   tests/gpu/run.sh OUT [tests|sanitizer|verify|offload|use|profile|scale|nccl|bench|steps|peers ...]      without names: all of them
#   tests/gpu/run.sh OUT long                                          one step of 1,048,576 tokens
#   tests/gpu/run.sh OUT cpu                                           the processor: tests and speed of its own kernels
#   tests/gpu/run.sh OUT quick                                         tests, verify, offload and a short bench
# Programs (ringlet, libringlet_cuda.so, cuda_tests, cuda_training_tests, gpu_bench) are looked for in
# $RINGLET_BIN, bin (of an installed folder), build/cuda/bin, build/tests/bin; other libraries of theirs (libfmt) in ../lib, seen from
# them, or in the folder lib beside the module. Everything is written under OUT, one log for each part; the
# last lines say how each part ended.
set -uo pipefail

[ $# -ge 1 ] || { sed -n '2,11p' "$0" >&2; exit 2; }
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../.." || exit
parts=${*:-tests sanitizer verify offload use profile scale nccl bench steps peers}
bench_options=
if [ "$parts" = quick ]; then parts="tests verify offload bench" bench_options=--quick; fi
mkdir -p "$out"

# The first of the folders that has the file.
find_built() {
  local folder
  for folder in "${RINGLET_BIN:-}" bin build/cuda/bin build/tests/bin; do
    if [ -n "$folder" ] && [ -e "$folder/$1" ]; then realpath "$folder/$1"; return; fi
  done
}
# Folders that may have CUDA's libraries: the toolkit's, and those of NVIDIA's packages for Python.
library_folders() {
  ls -d /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /usr/lib/x86_64-linux-gnu 2>/dev/null
  python3 -c 'import glob, site, sys
folders = {f for f in sys.path + site.getsitepackages() + [site.getusersitepackages()] if f}
for f in sorted(folders):
    print("\n".join(glob.glob(f + "/nvidia/*/lib") + glob.glob(f + "/torch/lib")))' 2>/dev/null
}
need_library() { # name
  local folder
  while read -r folder; do
    if [ -e "$folder/$1" ]; then
      echo "$1: $folder" >>"$out/machine.txt"
      # Not the system's own folder: it is searched anyway, and would go before others.
      [ "$folder" = /usr/lib/x86_64-linux-gnu ] || libraries=$libraries${libraries:+:}$folder
      return
    fi
  done < <(library_folders)
  echo "$1: not found" | tee -a "$out/machine.txt"
}

summary=()
# Runs a command with a time limit; its output goes to OUT/NAME.log, how it ended to the summary.
part() { # name, seconds, command...
  local name=$1 limit=$2 started=$SECONDS code=0
  shift 2
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  case $code in
    0) summary+=("$name: ok ($((SECONDS - started))s)") ;;
    124 | 137) summary+=("$name: TOOK LONGER THAN ${limit}s") ;;
    *) summary+=("$name: FAILED with $code ($((SECONDS - started))s): $(tail -n 1 "$out/$name.log")") ;;
  esac
  echo "${summary[-1]}"
  return $code
}

: >"$out/machine.txt"
libraries=
need_library libcublasLt.so.13
need_library libnccl.so.2
# Libraries that were carried over with the programs, such as libfmt.
carried=$(dirname "$(find_built libringlet_cuda.so)" 2>/dev/null)/lib
[ -d "$carried" ] && libraries=$carried${libraries:+:}$libraries
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
module=$(find_built libringlet_cuda.so)
tests=$(find_built cuda_tests)
training_tests=$(find_built cuda_training_tests)
bench=$(find_built gpu_bench)
ringlet=$(find_built ringlet)
[ -n "$module" ] || {
  echo "libringlet_cuda.so is not there: cmake --preset cuda -DRINGLET_TESTS=ON, and build ringlet, ringlet_cuda," \
    "cuda_tests, cuda_training_tests, gpu_bench, and for the part cpu kernels_tests, operations, rings, steps"
  exit 1
}
export RINGLET_CUDA_MODULE=$module
export RINGLET_TEST_SEED=${RINGLET_TEST_SEED:-$RANDOM}
{
  echo "seed of the tests: $RINGLET_TEST_SEED"
  nvidia-smi --format=csv \
    --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu
  ldd "$module" | grep -E 'cublas|nccl|not found'
} >>"$out/machine.txt" 2>&1
cat "$out/machine.txt"

# Starts the shards of a test program in the background. Uses logs, pids and names of its caller.
start_shards() { # program, shards, filter
  local shard name
  for ((shard = 0; shard < $2; shard++)); do
    name=$(basename "$1")-$shard
    GTEST_TOTAL_SHARDS=$2 GTEST_SHARD_INDEX=$shard timeout --kill-after=5 "${TEST_SECONDS:-150}" "$1" \
      --gtest_filter="$3" >"$logs/$name" 2>&1 &
    pids+=($!)
    names+=("$name")
  done
}

# The tests in several processes: the host's references take longer than the GPU. A crash takes one of them down.
run_tests() {
  local shards pids=() names=() shard failed=0 logs
  logs=$(mktemp -d)
  shards=$(nproc)
  [ "$shards" -le 12 ] || shards=12
  start_shards "$tests" "$shards" '*cuda*:Cuda*'
  if [ -n "$training_tests" ]; then
    start_shards "$training_tests" $(((shards + 2) / 3)) '*'
  else
    echo "cuda_training_tests was not built: no training is tested"
    failed=1
  fi
  for shard in "${!pids[@]}"; do
    # What crashed or hung is what ran last.
    wait "${pids[$shard]}" || {
      failed=1
      echo "shard ${names[$shard]} ended with $?, last in$(grep '^\[ RUN' "$logs/${names[$shard]}" | tail -n 1)" \
        >>"$logs/${names[$shard]}"
    }
  done
  grep -h -E '^\[  FAILED  \] .*\(|no CUDA device|^shard |terminate' "$logs"/* | sort | uniq -c
  # All that the failed ones said, and how long each took.
  cat "$logs"/* | grep -v -E '^(\[ RUN|Note:|Running main)' >"$out/tests-all.log"
  local passed skipped
  passed=$(cat "$logs"/* | grep -c '^\[       OK \]')
  skipped=$(cat "$logs"/* | grep -c '^\[  SKIPPED \] .*ms)')
  # Where nothing ran nothing was shown.
  echo "$passed passed, $(cat "$logs"/* | grep -c -E '^\[  FAILED  \] .*ms\)') failed, $skipped skipped"
  local no_device=0
  grep -q 'no CUDA device' "$logs"/* && no_device=1
  rm -r "$logs"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ] && [ "$no_device" = 0 ]
}

# Small cases of every kernel, tiny ones for the two tools that take longest; the asynchronous copies of wgmma kernels are
# mostly hidden from racecheck.
run_sanitizer() {
  local tool failed=0 code log filter
  local tiny='*ATinyPiece/cuda*:*OneTokenGathers*cuda*:*HugeLogits*cuda*:*BiasCorrection*cuda*:*CopyRows*cuda*:*AnEmptySum*cuda*'
  local small=$tiny:'*DocumentsStartAnywhere/cuda*:*StripedPieces/cuda_bf16*:*RowsThatSeeNothing/cuda*:*ExtremesSaturate*cuda*'
  # One at a time: a GPU lets one tool look into it.
  for tool in memcheck racecheck synccheck initcheck; do
    log=$out/sanitizer-$tool.log code=0 filter=$small
    case $tool in racecheck | initcheck) filter=$tiny ;; esac
    # Poison is uploaded, so initcheck sees only workspaces.
    timeout --kill-after=5 "${SANITIZER_SECONDS:-60}" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
      "$tests" --gtest_filter="${SANITIZER_FILTER:-$filter}" >"$log" 2>&1 || code=$?
    echo "== $tool: $(grep -c '^\[       OK \]' "$log") tests passed"
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|=========     at ' "$log" | sort | uniq -c | head -n 20
    grep -q '^\[       OK \]' "$log" || { tail -n 15 "$log"; failed=1; }
    case $code in
      0) ;;
      124 | 137) echo "$tool: cut off after ${SANITIZER_SECONDS:-60}s" ;;
      *) echo "$tool ended with $code"; failed=1 ;;
    esac
  done
  return $failed
}

run_verify() {
  local failed=0
  "$ringlet" doctor || true
  echo "== verify in f32"
  timeout 100 "$ringlet" verify --quick --device cuda || failed=1
  echo "== verify in bf16"
  timeout 100 "$ringlet" verify --quick --device cuda --dtype bf16 || failed=1
  return $failed
}

# Losses and norms of two trainings, whose block inputs stay on the GPU in one, and wait in the host's memory in the other.
run_offload() {
  local folder=$out/offload name dtype failed=0
  rm -rf "$folder"
  mkdir -p "$folder"
  "$ringlet" prepare README.md -o "$folder/corpus.h5" || return 1
  for dtype in f32 bf16; do
    for name in "" host; do
      timeout 60 "$ringlet" train configs/tiny.toml --device cuda --dtype "$dtype" --name "$dtype-$name" \
        --set "run.folder=$folder" --set "data.corpus=$folder/corpus.h5" --set "memory.offload=$name" \
        --set model.layers=6 --set model.width=128 --set memory.recompute=full --steps 20 >"$folder/$dtype-$name.log" 2>&1 || {
        echo "the training in $dtype with memory.offload = \"$name\" failed:"
        tail -n 3 "$folder/$dtype-$name.log"
        return 1
      }
      grep -o -E '"(step|loss|gradient_norm)":[^,]*' "$folder/$dtype-$name/metrics.jsonl" >"$folder/$dtype-$name.losses"
    done
    if [ "$(grep -c '"loss"' "$folder/$dtype-.losses")" = 20 ] && cmp "$folder/$dtype-.losses" "$folder/$dtype-host.losses"
    then echo "$dtype: 20 steps are equal"
    else echo "$dtype: the steps differ"; failed=1; fi
  done
  return $failed
}

# A trained model scored and sampled on the GPU and on the processor: f32 losses agree to 1e-4, greedy text is the same.
run_use() {
  local folder=$out/use device failed=0
  rm -rf "$folder"
  mkdir -p "$folder"
  "$ringlet" prepare README.md -o "$folder/corpus.h5" --validation 0.1 || return 1
  timeout 60 "$ringlet" train configs/tiny.toml --device cuda --name run --set "run.folder=$folder" \
    --set "data.corpus=$folder/corpus.h5" --set "data.validation=$folder/corpus.validation.h5" --steps 60 || return 1
  for device in cpu cuda; do
    timeout 60 "$ringlet" eval "$folder/run" --device $device --json >"$folder/eval-$device.json" &&
      timeout 60 "$ringlet" generate "$folder/run" --device $device --prompt "The ring" --temperature 0 --tokens 64 \
        >"$folder/text-$device" || failed=1
  done
  cmp "$folder/text-cpu" "$folder/text-cuda" || failed=1
  python3 - "$folder"/eval-*.json <<'END' || failed=1
import json, sys
losses = [json.load(open(path))["loss"] for path in sys.argv[1:]]
print("losses of cpu and cuda:", *losses)
sys.exit(abs(losses[0] - losses[1]) > 1e-4 * losses[0])
END
  return $failed
}

# Where the time of a step goes, of one rank and of eight that share the GPU. The tables stand in the log.
run_profile() {
  local ranks failed=0
  for ranks in 1 8; do
    rm -rf "$out/profile-$ranks"
    timeout 100 "$ringlet" profile configs/gpu-124m.toml --seq-len 32768 --ranks $ranks --steps 3 \
      -o "$out/profile-$ranks" || failed=1
    rm -rf "$out/profile-$ranks/perfetto"  # large, and the same again
  done
  return $failed
}

# Times and memory by length and ranks, of ranks that share the GPU.
run_scale() {
  rm -rf "$out/scale"
  timeout 180 "$ringlet" scale configs/gpu-124m.toml --seq-len 8k,16k --ranks 1,2,4 -o "$out/scale"
}

# One process a GPU: what it trains, how it goes on, and how it ends where it cannot.
train_tiny() { # comm, ranks, option...
  timeout 60 "$ringlet" train configs/tiny.toml --device cuda --comm "$1" --ranks "$2" --name "${NAME:-$1-$2}" \
    --set data.corpus="$work/corpus.h5" --set run.folder="$work/runs" "${@:3}"
}
# By hand, as a launcher would.
train_processes() { # count, option...
  local rank pids=() failed=0
  for ((rank = 0; rank < $1; rank++)); do
    RANK=$rank WORLD_SIZE=$1 LOCAL_RANK=$rank train_tiny nccl "$1" --set run.address=127.0.0.1:29417 "${@:2}" \
      2>&1 | sed "s/^/[$rank] /" &
    pids+=($!)
  done
  for rank in "${pids[@]}"; do wait "$rank" || failed=1; done
  return $failed
}
expect_end() { # code, words, command...: ends with that code, and says the words
  local code=0 said
  said=$("${@:3}" 2>&1) || code=$?
  echo "$said"
  [ "$code" = "$1" ] && grep -q -i "$2" <<<"$said" && return
  echo "ended with $code instead of $1, or did not say: $2"
  return 1
}
same_losses() { # run, run
  local count
  count=$(grep -c '"loss"' "$work/runs/$1/metrics.jsonl")
  diff <(grep -o '"loss":[^,]*' "$work/runs/$1/metrics.jsonl") <(grep -o '"loss":[^,]*' "$work/runs/$2/metrics.jsonl") &&
    [ "$count" -gt 0 ] && echo "== $1 and $2: the same $count losses" && return
  echo "== $1 and $2: losses differ"
  return 1
}
run_nccl() {
  set -o pipefail
  local failed=0 gpus steps
  work=$(mktemp -d)
  gpus=$(nvidia-smi -L | wc -l)
  "$ringlet" prepare README.md -o "$work/corpus.h5" || return 1
  for steps in 20 24; do
    local options=(--steps "$steps")
    [ "$steps" = 20 ] || options+=(--resume)
    train_tiny threads 1 "${options[@]}" && train_tiny nccl 1 "${options[@]}" && same_losses threads-1 nccl-1 || failed=1
  done
  if [ "$gpus" -gt 1 ]; then
    train_tiny threads 2 --steps 20 && train_processes 2 --steps 20 && same_losses threads-2 nccl-2 || failed=1
  else
    expect_end 1 'duplicate GPU' train_processes 2 --set run.timeout_seconds=20 --set run.verify=off || failed=1
  fi
  NAME=alone RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 expect_end 1 'rank 1 of 2 has not come' train_tiny nccl 2 \
    --set run.address=127.0.0.1:29418 --set run.timeout_seconds=3 --set run.verify=off || failed=1
  rm -r "$work"
  return $failed
}
# Whole steps of configs/gpu-124m.toml on made-up tokens: OUT/steps/T-VOCABULARY-RECOMPUTE.jsonl, for gpu_tables.py.
train_steps() { # tokens, vocabulary, recompute, steps, option...
  local name=$1-$2-$3 corpus=$out/steps/$2.h5
  mkdir -p "$out/steps"
  if [ ! -e "$corpus" ]; then
    python3 - "$out/steps/$2.bin" "$2" <<'END' || return 1
import array, random, sys
random.seed(5)
most = int(sys.argv[2]) - 2  # the last id ends a document
array.array("H", (min(most, int(random.paretovariate(0.6)) - 1) for _ in range(1_200_000))).tofile(open(sys.argv[1], "wb"))
END
    "$ringlet" prepare "$out/steps/$2.bin" -o "$corpus" --vocabulary $(($2 - 1)) && rm "$out/steps/$2.bin" || return 1
    "$ringlet" plan configs/gpu-124m.toml --set "data.corpus=$corpus" --calibrate >"$out/plan-$2.log" 2>&1 || tail -n 3 "$out/plan-$2.log"
  fi
  "$ringlet" train configs/gpu-124m.toml --seq-len "$1" --steps "$4" --name "$name" --set "data.corpus=$corpus" \
    --set "run.folder=$out/steps/runs" --set "memory.recompute=$3" --set run.verify=off \
    --set run.timeout_seconds=900 --set train.warmup_steps=0 "${@:5}" || return 1
  cp "$out/steps/runs/$name/metrics.jsonl" "$out/steps/$name.jsonl"
}
run_steps() {
  train_steps 8192 257 none 25 && train_steps 8192 50304 none 25 && train_steps 65536 257 none 6 &&
    train_steps 65536 50304 none 6 && train_steps 65536 257 selective 5
}
run_long() {
  train_steps 1048576 50304 selective 1 && grep -o -E '"(step_ms|tokens_per_second)":[^,]*' "$out/steps/1048576-50304-selective.jsonl"
}
# The processor there may have vectors that the one of the build lacks: the tests of the kernels for it, and their speed on two
# of its cores, in OUT/cpu.md.
run_cpu() {
  local folder name cores pin=() failed=0
  folder=$(dirname "$ringlet")
  for name in kernels_tests operations rings steps; do
    [ -e "$folder/$name" ] || { echo "$name was not built"; return 1; }
  done
  lscpu | grep -E 'Model name|^CPU\(s\)|Thread|L[123]'
  "$folder/kernels_tests" --gtest_brief=1 || failed=1
  # The first two that are allowed and are no threads of one core.
  cores=$(lscpu -p=CPU,CORE | grep -v '^#' | while IFS=, read -r cpu core; do
    taskset -c "$cpu" true 2>/dev/null && echo "$cpu,$core"
  done | sort -t, -k2,2n -u | head -n 2 | cut -d, -f1 | paste -sd,)
  [[ $cores == *,* ]] && pin=(taskset -c "$cores")
  BENCH_RAW=$out/cpu RINGLET_BIN=$folder "${pin[@]}" bash tests/bench/run.sh --quick "$out/cpu.md" || failed=1
  return $failed
}
sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
export -f start_shards run_tests run_sanitizer run_verify run_offload run_use run_profile run_scale
export -f train_steps run_steps run_long run_cpu
export -f run_nccl train_tiny train_processes expect_end same_losses
export out tests training_tests ringlet sanitizer

missing() { summary+=("$1: not run, $2"); echo "${summary[-1]}"; }
for name in $parts; do
  case $name in
    tests) if [ -n "$tests" ]; then part tests 240 bash -c run_tests; tail -n 15 "$out/tests.log"
      else missing tests "cuda_tests was not built"; fi ;;
    sanitizer) if [ -n "$tests" ] && [ -n "$sanitizer" ]; then part sanitizer 270 bash -c run_sanitizer; cat "$out/sanitizer.log"
      else missing sanitizer "cuda_tests or NVIDIA's compute-sanitizer is not there"; fi ;;
    verify) if [ -n "$ringlet" ]; then part verify 220 bash -c run_verify; tail -n 30 "$out/verify.log"
      else missing verify "ringlet was not built"; fi ;;
    offload) if [ -n "$ringlet" ]; then part offload 200 bash -c run_offload; cat "$out/offload.log"
      else missing offload "ringlet was not built"; fi ;;
    use) if [ -n "$ringlet" ]; then part use 240 bash -c run_use; cat "$out/use.log"
      else missing use "ringlet was not built"; fi ;;
    profile) if [ -n "$ringlet" ]; then part profile 210 bash -c run_profile; cat "$out/profile.log"
      else missing profile "ringlet was not built"; fi ;;
    scale) if [ -n "$ringlet" ]; then part scale 190 bash -c run_scale; cat "$out/scale.log"
      else missing scale "ringlet was not built"; fi ;;
    nccl) if [ -z "$ringlet" ]; then missing nccl "ringlet was not built"
      elif grep -q 'libnccl.so.2: not found' "$out/machine.txt"; then missing nccl "NCCL is not installed"
      else part nccl 240 bash -c run_nccl; tail -n 40 "$out/nccl.log"; fi ;;
    steps) if [ -n "$ringlet" ]; then part steps 300 bash -c run_steps; grep -E '^run |^a step|^memory taken|^arena' "$out/steps.log"
      else missing steps "ringlet was not built"; fi ;;
    long) if [ -n "$ringlet" ]; then part long 400 bash -c run_long; tail -n 12 "$out/long.log"
      else missing long "ringlet was not built"; fi ;;
    cpu) if [ -n "$ringlet" ]; then part cpu 1200 bash -c run_cpu; cat "$out/cpu.log"
      else missing cpu "ringlet was not built"; fi ;;
    bench) # shellcheck disable=SC2086  # a word or nothing
      if [ -n "$bench" ]; then part bench 240 "$bench" "$out" $bench_options ${BENCH_PARTS:-}; cat "$out/bench.log"
      else missing bench "gpu_bench was not built"; fi ;;
    peers)
      if python3 -c 'import torch' 2>/dev/null; then
        part peers 150 python3 tests/peers/gpu_torch.py "$out/torch.json"
        cat "$out/peers.log"
      else missing peers "PyTorch is not on this machine"; fi ;;
    *) missing "$name" "there is no such part" ;;
  esac
done

echo
printf '%s\n' "${summary[@]}" | tee "$out/summary.txt"
! grep -q -E 'FAILED|TOOK LONGER' "$out/summary.txt"
