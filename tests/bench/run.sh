#!/usr/bin/env bash
# Measures the speed of operations, of rings and of whole training steps on this machine, PyTorch's in turn with ours,
# and how the time of a step grows, and writes the tables to tests/bench/results/speed.md (or FILE). An hour on two
# cores; --quick leaves out T = 32,768 and growth beyond 16,384: ten minutes.
#   tests/bench/run.sh [--quick] [FILE]
# With RINGLET_BIN=FOLDER it measures the programs there (operations, rings, steps, ringlet), and builds and installs nothing.
# BENCH_RAW: the folder for what the tables are made of, instead of build/bench. BENCH_SECONDS: at least so long a short step is
# repeated, instead of 15.
set -euo pipefail
[ -z "${RINGLET_BIN:-}" ] || RINGLET_BIN=$(realpath "$RINGLET_BIN")
cd "$(dirname "$0")/../.."

lengths="2048 8192 32768" growth=1k,2k,4k,8k,16k,32k,64k
if [ "${1:-}" = --quick ]; then
  lengths="2048 8192" growth=1k,2k,4k,8k,16k
  shift
fi
file=${1:-tests/bench/results/speed.md}
raw=${BENCH_RAW:-build/bench}
mkdir -p "$raw" "$(dirname "$file")"

if [ -z "${RINGLET_BIN:-}" ]; then
  . train/install_packages.sh
  install_packages $build_packages libgtest-dev libgmock-dev libbenchmark-dev
  install_packages libopenblas-pthread-dev || echo "going on without OpenBLAS beside our matrix products"
  install_packages python3-torch libopenblas0-openmp || echo "going on without PyTorch"
  cmake --preset tests >/dev/null
  cmake --build --preset tests --target operations rings steps ringlet
fi
bin=${RINGLET_BIN:-build/tests/bin}

# OpenBLAS does not know every processor: without this it may take kernels of 2004.
export OPENBLAS_THREAD_TIMEOUT=4  # its threads must not spin while the peak is measured
if grep -q avx512bw /proc/cpuinfo; then export OPENBLAS_CORETYPE=SkylakeX; else export OPENBLAS_CORETYPE=Haswell; fi
"$bin/operations" --benchmark_min_time=0.3 --benchmark_out="$raw/operations.json" \
  --benchmark_out_format=json

"$bin/rings" >"$raw/rings.jsonl"

rm -f "$raw"/steps-*.json "$raw/torch.jsonl"
for length in $lengths; do
  for who in one_rank_of_two_threads two_ranks_zigzag two_ranks_contiguous; do  # a process each: peak memory
    if [ "$who" = two_ranks_contiguous ] && [ "$length" -ne 8192 ]; then continue; fi
    "$bin/steps" --benchmark_filter="$who/T:$length/" --benchmark_min_time=$((length > 8192 ? 1 : ${BENCH_SECONDS:-15})) \
      --benchmark_out="$raw/steps-$length-$who.json" --benchmark_out_format=json
  done
  for attention in naive sdpa tiled; do
    # T x T scores of all heads and layers are 13 GiB at T = 8192, and slower than tiles.
    if [ "$attention" != tiled ] && [ "$length" -gt 2048 ]; then continue; fi
    steps=$((length > 8192 ? 1 : length > 2048 ? 3 : 5))
    /usr/bin/python3 tests/peers/train_torch.py --length "$length" --attention "$attention" --steps "$steps" \
      >>"$raw/torch.jsonl" || echo "PyTorch, $attention, T = $length: did not run"
  done
done
rm -rf "$raw/growth"
"$bin/ringlet" scale configs/quickstart.toml --seq-len "$growth" --ranks 1 -o "$raw/growth"
python3 tests/bench/speed_tables.py "$raw" >"$file"
cat "$file"
