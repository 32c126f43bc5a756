#!/usr/bin/env bash
# Builds and runs every test: Release, then AddressSanitizer + UBSan, then ThreadSanitizer. The last line counts them.
# Where nvcc is, the Release build has the CUDA module, and its tests run with it.
#   tests/run.sh [--quick | --coverage]
#     --quick      Release only
#     --coverage   instead: line coverage of kernels/ model/ data/ train/, as a table
set -euo pipefail
cd "$(dirname "$0")/.."
. train/install_packages.sh

mode=${1:-full}
started=$SECONDS
passed=0 failed=0 skipped=0
configure_options=
stage() { printf '\n== %s (%ss)\n' "$1" $((SECONDS - started)); }

# Builds targets of a preset and runs their tests; adds to the counts.
run_preset() { # preset, targets, ctest arguments...
  local preset=$1 log=build/$1/tests.log passed_before=$passed failed_before=$failed
  local targets=$2
  shift 2
  stage "$preset: build"
  # shellcheck disable=SC2086  # lists of words
  cmake --preset "$preset" $configure_options >/dev/null
  # shellcheck disable=SC2086
  cmake --build --preset "$preset" --target $targets
  stage "$preset: run"
  rm -f "$log.status"
  { (cd "build/$preset" && ctest -j2 --output-on-failure "$@") 2>&1 || echo $? >"$log.status"; } |
    tee "$log" | grep -v -E '^ *(Start|[0-9]+/[0-9]+ Test .* Passed )' || true
  passed=$((passed + $(grep -c ' Passed ' "$log" || true)))
  failed=$((failed + $(grep -c -E '\*\*\*(Failed|Timeout|Exception|Not Run)' "$log" || true)))
  skipped=$((skipped + $(grep -c '\*\*\*Skipped' "$log" || true)))
  # ctest failed without a failed test, or had no test to run: that is a failure too.
  if [ "$failed" -eq "$failed_before" ] &&
    { [ -e "$log.status" ] || [ "$passed" -eq "$passed_before" ]; }; then
    failed=$((failed + 1))
    echo "$preset: ctest itself failed, or ran no test; see $log"
  fi
}

# Options of the Release build that compile the CUDA module with it, where there is a compiler for it: each file once,
# for the oldest GPU that it is for.
cuda_options() {
  local nvcc
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  if "$nvcc" --version 2>/dev/null | grep -q -E 'release (12\.[5-9]|1[3-9]\.|[2-9][0-9]\.)'; then
    echo "-DRINGLET_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=80-real"
  else
    echo "-DRINGLET_CUDA=OFF"
    echo "cuda: left out, there is no nvcc of CUDA 12.5 or newer; the tests of its module skip themselves" >&2
  fi
}

stage "packages"
install_packages $build_packages libgtest-dev libgmock-dev libbenchmark-dev
install_packages python3-torch || echo "going on without it: its tests skip themselves"
[ "$mode" = --coverage ] && install_packages gcovr

# Defects put into a training step on purpose, and where the verification finds them.
list_defects() {
  stage "defects that verification finds"
  build/tests/bin/distributed_tests --gtest_brief=1 \
    --gtest_filter=VerifyTest.FailsEveryDefectAtItsPlace | grep -v -E '^(Running|Note:|\[)' || true
}

case $mode in
  full)
    configure_options=$(cuda_options)
    run_preset tests all
    configure_options=
    list_defects
    # What repeats the same code with more numbers is left to the Release run.
    release_only='PassesADiagonal|FiftySteps|ResumedInAnyOfThem|ResumeInEveryKindOfMemory|BytesOfMemoryAndMessages|PlanTest.Longest|PlanTest.Large|PlanCommand.A|PlanCommand.Tells|ReproducibleAttentionTest.*/(513|1000)$'
    # Where memory is touched by hand and files are read, and the program as the tests of faults run it. Ranks together
    # are the thread sanitizer's. The sanitizer's allocator is not whole in a child forked beside other threads; of three
    # tests that train, end and resume the one with SIGKILL stands for all.
    run_preset asan "kernels_tests data_tests model_tests faults_tests" -L '^(kernels|data|model|faults)$' \
      -E "$release_only|ManyThreadsOpenAtOnce|InterruptedAndResumedIsTheSameRun|InterruptedInAnyStage|EveryBitCounts|EveryLengthCounts|(EqualsReferenceForEveryShape|BitsDoNotDependOnTheCut)/SCALAR"
    # What asks for numbers more than for order, or for the same order with more of it.
    release_numbers='PassesTheQuickMatrix|FailsEveryDefect|LossesAndEveryGradientEqualTheDense|BehindTheEndOfAnEpoch'
    release_numbers+='|MemoryTest|PlanTest|TuneTest|CorpusWindows|ShardedOnAnyRingEqualsPlain|ComparingContexts|TrainingRecordsHold'
    release_numbers+='|ProfileTest.(Tables|Spans)|Bf16TrainerTest.(Rings|ResumingOnTheSame)|SpotCheckTest.PassesTheRealStep'
    release_numbers+='|RingAttentionTest.*/(257|1000)$|ReproducibleModelTest.*/600$'
    run_preset tsan distributed_tests -L distributed \
      -E "$release_only|$release_numbers"
    ;;
  --quick)
    run_preset tests all
    list_defects
    ;;
  --coverage)
    # Children that are killed while they write their counts spoil those of others; the plan of every config takes too long.
    run_preset coverage all -E 'SaveFaultTest.ErrorAtEvery|BytesOfMemoryAndMessages'
    for folder in kernels model data train; do
      printf '%-8s ' "$folder"
      gcovr -r . --object-directory build/coverage -f "$folder/" build/coverage 2>/dev/null |
        grep '^TOTAL' | awk '{ print $3 " of " $2 " lines, " $4 }'
    done
    ;;
  *)
    echo "usage: tests/run.sh [--quick | --coverage]" >&2
    exit 2
    ;;
esac

echo
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
