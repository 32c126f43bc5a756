#!/usr/bin/env bash
# Measures the speed of operations, of rings and of whole training steps on this machine, PyTorch's in turn with ours,
# and how the time of a step grows, and writes the tables to tests/bench/results/speed.md (or FILE). Half an
# hour to an hour on two cores; --quick leaves out T = 32,768 and growth beyond 16,384: twelve minutes.
#   tests/bench/run.sh [--quick] [FILE]
# With RINGLET_BIN=FOLDER it measures the programs there (operations, rings, steps, ringlet), and builds and installs nothing.
# BENCH_PYTHON: a python3 whose PyTorch is measured as well. BENCH_RAW: the folder for what the tables are made of, instead
# of build/bench. BENCH_SECONDS: at least so long a short step is repeated in each turn, instead of 5. BENCH_ONLY: some of
# "operations rings steps growth tables" instead of all: parts can be measured at the same time on cores of their own, with
# one BENCH_RAW, and the tables made afterwards.
set -euo pipefail
[ -z "${RINGLET_BIN:-}" ] || RINGLET_BIN=$(realpath "$RINGLET_BIN")
[ -z "${BENCH_PYTHON:-}" ] || BENCH_PYTHON=$(realpath -s "$BENCH_PYTHON")  # a link of a virtual environment, as it is
cd "$(dirname "$0")/../.."

lengths="2048 8192 32768" growth=1k,2k,4k,8k,16k,32k,64k operation_seconds=2
if [ "${1:-}" = --quick ]; then
  lengths="2048 8192" growth=1k,2k,4k,8k,16k operation_seconds=0.3
  shift
fi
file=${1:-tests/bench/results/speed.md}
raw=${BENCH_RAW:-build/bench}
mkdir -p "$raw" "$(dirname "$file")"

parts=${BENCH_ONLY:-operations rings steps growth tables}
for part in $parts; do
  [[ " operations rings steps growth tables " = *" $part "* ]] || { echo "BENCH_ONLY: there is no part '$part'" >&2; exit 2; }
done

if [ -z "${RINGLET_BIN:-}" ] && [ "$parts" != tables ]; then
  . train/install_packages.sh
  install_packages $build_packages libgtest-dev libgmock-dev libbenchmark-dev
  install_packages libopenblas-pthread-dev || echo "going on without OpenBLAS beside our matrix products"
  install_packages python3-torch libopenblas0-openmp || echo "going on without PyTorch"
  cmake --preset tests >/dev/null
  cmake --build --preset tests --target operations rings steps ringlet
fi
bin=${RINGLET_BIN:-build/tests/bin}
wants() { [[ " $parts " = *" $1 "* ]]; }
[ "$parts" = tables ] || grep -m 2 -E '^(model name|flags)' /proc/cpuinfo >"$raw/cpuinfo" || true

# Each PyTorch that is there: the path's, the distribution's, BENCH_PYTHON's. From 2.1 on it has a fused attention for the
# CPU.
torch_version='import torch; print(torch.__version__)'
declare -A pythons=()  # of each version
for python in python3 /usr/bin/python3 "${BENCH_PYTHON:-}"; do
  if torch=$("$python" -c "$torch_version" 2>/dev/null) && [ -n "$torch" ]; then pythons[$torch]=${pythons[$torch]:-$python}
  elif [ -n "${BENCH_PYTHON:-}" ] && [ "$python" = "$BENCH_PYTHON" ]; then echo "BENCH_PYTHON has no PyTorch" >&2; exit 2; fi
done
peer_attentions() { # length PyTorch
  # T x T scores of all heads and layers are 13 GiB at T = 8192, and slower than tiles.
  if [ "$1" -le 2048 ]; then echo naive sdpa tiled
  elif [[ $2 =~ ^(1\.|2\.0) ]]; then echo tiled
  else echo sdpa tiled; fi
}

# OpenBLAS does not know every processor: without this it may take kernels of 2004.
export OPENBLAS_THREAD_TIMEOUT=4  # its threads must not spin while the peak is measured
if grep -q avx512bw /proc/cpuinfo; then export OPENBLAS_CORETYPE=SkylakeX
elif grep -q avx2 /proc/cpuinfo; then export OPENBLAS_CORETYPE=Haswell; fi
if wants operations; then
  "$bin/operations" --benchmark_min_time=$operation_seconds --benchmark_out="$raw/operations.json" --benchmark_out_format=json
fi

if wants rings; then "$bin/rings" >"$raw/rings.jsonl"; fi

measure_steps() { # length turn
  local who torch attention steps=$(($1 > 8192 ? 1 : $1 > 2048 ? 2 : 4))
  for who in one_rank_of_two_threads two_ranks_zigzag two_ranks_contiguous; do  # a process each: peak memory
    if [ "$who" = two_ranks_contiguous ] && [ "$1" -ne 8192 ]; then continue; fi
    "$bin/steps" --benchmark_filter="$who/T:$1/" --benchmark_min_time=$(($1 > 8192 ? 1 : ${BENCH_SECONDS:-5})) \
      --benchmark_out="$raw/steps-$1-$who-$2.json" --benchmark_out_format=json
  done
  for torch in "${!pythons[@]}"; do
    for attention in $(peer_attentions "$1" "$torch"); do
      "${pythons[$torch]}" tests/peers/train_torch.py --length "$1" --attention "$attention" --steps "$steps" \
        >>"$raw/torch-$2.jsonl" || echo "PyTorch $torch, $attention, T = $1: did not run"
    done
  done
}
if wants steps; then
  rm -f "$raw"/steps-*.json "$raw"/torch-*.jsonl
  for turn in 1 2 3; do  # a machine's slow minutes fall on all
    for length in $lengths; do
      if [ "$length" -le 8192 ] || [ "$turn" = 1 ]; then measure_steps "$length" "$turn"; fi
    done
  done
fi

if wants growth; then
  rm -rf "$raw/growth"
  "$bin/ringlet" scale configs/quickstart.toml --seq-len "$growth" --ranks 1 --steps 3 -o "$raw/growth"
fi
if wants tables; then
  python3 tests/bench/speed_tables.py "$raw" >"$raw/speed.md"
  cp "$raw/speed.md" "$file"
  cat "$file"
fi
