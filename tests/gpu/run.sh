#!/usr/bin/env bash
# Checks and measures the CUDA backend on a machine with a GPU. Needs no compiler there: build elsewhere, carry the folder.
#   tests/gpu/run.sh OUT [tests|sanitizer|verify|bench|peers ...]      without names: all of them, in this order
#   tests/gpu/run.sh OUT quick                                         tests, verify and a short bench
# Programs (ringlet, libringlet_cuda.so, cuda_tests, cuda_training_tests, gpu_bench) are looked for in
# $RINGLET_BIN, build/cuda/bin, build/tests/bin; other libraries of theirs in the folder lib beside the module.
# Everything is written under OUT, one log for each part; the last lines say how each part ended.
set -uo pipefail

[ $# -ge 1 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../.." || exit
parts=${*:-tests sanitizer verify bench peers}
bench_options=
if [ "$parts" = quick ]; then parts="tests verify bench" bench_options=--quick; fi
mkdir -p "$out"

# The first of the folders that has the file.
find_built() {
  local folder
  for folder in "${RINGLET_BIN:-}" build/cuda/bin build/tests/bin; do
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
    "cuda_tests, cuda_training_tests, gpu_bench"
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

# Small cases of every kernel; the asynchronous copies of wgmma kernels are mostly hidden from racecheck. The four
# tools watch a process each, all at the same time: a GPU serves them in turn, and most of a tool's time is the
# host's. Each has ports of its own to talk to its process, where it lets them be chosen.
run_sanitizer() {
  local tool failed=0 pids=() port=49152 own_port=() i code
  local tools=(memcheck racecheck synccheck initcheck)
  local filter='*DocumentsStartAnywhere/cuda*:*StripedPieces/cuda_bf16*:*RowsThatSeeNothing/cuda*:*ExtremesSaturate*cuda*'
  filter+=':*OneTokenGathers*cuda*:*HugeLogits*cuda*:*BiasCorrection*cuda*:*CopyRows*cuda*:*AnEmptySum*cuda*'
  for tool in "${tools[@]}"; do
    "$sanitizer" --help 2>&1 | grep -q -e '--port ' && own_port=(--port "$port")
    # Poison is uploaded, so initcheck sees only workspaces.
    timeout --kill-after=5 "${SANITIZER_SECONDS:-85}" "$sanitizer" --tool "$tool" "${own_port[@]}" \
      --error-exitcode 9 --print-limit 20 "$tests" --gtest_filter="$filter" >"$out/sanitizer-$tool.log" 2>&1 &
    pids+=($!)
    port=$((port + 100))
  done
  for i in "${!tools[@]}"; do
    tool=${tools[$i]} code=0
    wait "${pids[$i]}" || code=$?
    echo "== $tool"
    grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|=========     at ' "$out/sanitizer-$tool.log" | sort | uniq -c | head -n 20
    grep -E '^\[  (PASSED|FAILED)  \]' "$out/sanitizer-$tool.log"
    case $code in
      0) ;;
      124 | 137) echo "$tool: cut off after ${SANITIZER_SECONDS:-85}s," \
        "$(grep -c '^\[       OK \]' "$out/sanitizer-$tool.log") tests done" ;;
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
sanitizer=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
export -f start_shards run_tests run_sanitizer run_verify
export out tests training_tests ringlet sanitizer

missing() { summary+=("$1: not run, $2"); echo "${summary[-1]}"; }
for name in $parts; do
  case $name in
    tests) if [ -n "$tests" ]; then part tests 240 bash -c run_tests; tail -n 15 "$out/tests.log"
      else missing tests "cuda_tests was not built"; fi ;;
    sanitizer) if [ -n "$tests" ] && [ -n "$sanitizer" ]; then part sanitizer 98 bash -c run_sanitizer; cat "$out/sanitizer.log"
      else missing sanitizer "cuda_tests or NVIDIA's compute-sanitizer is not there"; fi ;;
    verify) if [ -n "$ringlet" ]; then part verify 220 bash -c run_verify; tail -n 30 "$out/verify.log"
      else missing verify "ringlet was not built"; fi ;;
    bench) # shellcheck disable=SC2086  # a word or nothing
      if [ -n "$bench" ]; then part bench 180 "$bench" "$out" $bench_options; cat "$out/bench.log"
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
