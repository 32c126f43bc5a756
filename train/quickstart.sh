#!/usr/bin/env bash
# From nothing to a trained long-context model: packages, build, the King James Bible as a corpus, training on a
# ring of four ranks, an interruption, resume, evaluation, a sample. With --recall: to a model that looks up what it was
# told, and its accuracy by distance. Can be run again; begins a fresh run each time.
set -euo pipefail
case "$#:${1:-}" in
  0: | 1:--recall) ;;
  *) echo "usage: bash train/quickstart.sh [--recall]" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
. train/install_packages.sh

folder=build/quickstart
run=runs/quickstart
ringlet=build/release/bin/ringlet
started=$SECONDS
stage() { printf '\n== %s (%ss)\n' "$1" $((SECONDS - started)); }

# The last step in metrics.jsonl: one JSON object a line. Nothing, and no failure, while there is none.
last_step() {
  { grep -o '"step":[0-9]*,"steps"' "$run/metrics.jsonl" 2>/dev/null || true; } | tail -1 | tr -dc 0-9
}

# Associative recall: pairs of a key and its value, then keys whose values have to be told.
recall() {
  run=runs/recall
  stage "samples of 64 tokens, a tenth of them for validation, and some that are four times as long"
  mkdir -p "$folder"
  "$ringlet" prepare --task mqar --seq-len 64 --items 4 --vocabulary 256 --samples 10000 --validation 0.1 \
    -o "$folder/recall.h5"
  "$ringlet" prepare --task mqar --seq-len 256 --items 4 --vocabulary 256 --samples 1000 --distance 8..248 --seed 2 \
    -o "$folder/recall-long.h5"
  "$ringlet" inspect "$folder/recall.h5"

  stage "train on a ring of four ranks"
  rm -rf "$run"
  "$ringlet" train configs/recall.toml

  stage "evaluate: samples that were never trained on, by distance"
  "$ringlet" eval "$run" --csv "$folder/recall.csv" | tee "$folder/recall.txt"

  stage "evaluate: samples four times as long, distances that were never trained"
  "$ringlet" eval "$run" --corpus "$folder/recall-long.h5" | tee "$folder/recall-long.txt"

  stage "summary"
  sed -n 's/^accuracy/trained length:      accuracy/p' "$folder/recall.txt"
  sed -n 's/^accuracy/four times as long:  accuracy/p' "$folder/recall-long.txt"
  echo "run          $run (config.toml, metrics.jsonl, checkpoints/)"
  echo "by distance  $folder/recall.csv"
  echo "all in $((SECONDS - started)) seconds"
}

[ $# -gt 0 ] && texts="" || texts="bible-kjv bible-kjv-text"
stage "packages"
install_packages $build_packages $texts

stage "build"
cmake --preset release >/dev/null
cmake --build --preset release

if [ $# -gt 0 ]; then
  recall
  exit
fi

stage "real text: the King James Bible, its last tenth for validation"
mkdir -p "$folder"
bible -f 'gen1:1-rev22:21' </dev/null >"$folder/kjv.txt"
"$ringlet" prepare "$folder/kjv.txt" -o "$folder/kjv.h5" --validation 0.1
"$ringlet" inspect "$folder/kjv.h5"

stage "train on a ring of four ranks, until it is interrupted"
rm -rf "$run"
"$ringlet" train configs/quickstart.toml &
trainer=$!
trap 'kill "$trainer" 2>/dev/null || true' EXIT
while kill -0 "$trainer" 2>/dev/null; do
  step=$(last_step)
  [ "${step:-0}" -ge 150 ] && break
  sleep 0.2
done
echo "-- sending SIGTERM to the training"
kill -TERM "$trainer"
wait "$trainer"
trap - EXIT

stage "resume"
"$ringlet" train configs/quickstart.toml --resume

stage "evaluate: the validation tenth, at full context and at a quarter of it"
"$ringlet" eval "$run" --by-position --compare-context 512 --bigram "$folder/kjv.h5" |
  tee "$folder/evaluation.txt"

stage "a sample"
"$ringlet" generate "$run" --prompt "In the beginning" --tokens 300 --temperature 0.7 --seed 1 |
  tee "$folder/sample.txt"

stage "summary"
echo "training loss:"
grep -o '"step":[0-9]*,"steps":[0-9]*,"loss":[0-9.]*' "$run/metrics.jsonl" | tr -d '"' | tr ',' ' ' |
  awk '{ split($1, s, ":"); split($3, l, ":"); step[NR] = s[2]; loss[NR] = l[2] }
       END { for (i = 0; i < 6; ++i) { k = 1 + int(i * (NR - 1) / 5)
               printf "  step %4d  %.3f nats per byte\n", step[k], loss[k] } }'
sed -n 's/^/validation: /; 2,6p' "$folder/evaluation.txt"
echo "program      $ringlet"
echo "corpus       $folder/kjv.h5, $folder/kjv.validation.h5"
echo "run          $run (config.toml, metrics.jsonl, checkpoints/)"
echo "evaluation   $folder/evaluation.txt"
echo "sample       $folder/sample.txt"
echo "all in $((SECONDS - started)) seconds"
