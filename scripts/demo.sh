#!/usr/bin/env bash
# The main job end to end on a synthetic archive: simulate, prepare, pretrain, kill, resume,
# evaluate, report. All output goes to outputs/demo. Usage: bash scripts/demo.sh [--env DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

demo=outputs/demo
run=(run=demo "paths.runs=$demo/runs")
step() { printf '\n== %s\n' "$*"; }
tell() { echo "\$ python $*"; "$PYTHON" "$@"; }

step "1/6 A synthetic HEEDB 5.0 archive: two sites, WFDB records, tables, and their quirks"
if [ -d "$demo/archive" ]; then
  echo "$demo/archive is there already."
else
  tell scripts/simulate.py "out=$demo/archive" num_patients=700 seed=1 num_workers=2 \
    prevalences.paced=0.08 # some more than in a hospital, so that the test part has a dozen
fi

step "2/6 Records to shards: labels, patient-level split, signal profile"
tell scripts/prepare.py source=heedb "source.root=$demo/archive" "shards=$demo/shards" signal.fs=100
tell scripts/verify.py "shards=$demo/shards"

train=(scripts/pretrain.py "shards=$demo/shards" "${run[@]}" experiment=demo trainer=cpu)
step "3/6 Pretraining, until it is killed half way with SIGKILL"
progress() { "$PYTHON" -c '
import json, sys
state = json.load(open(sys.argv[1]))
print(int(2 * state["samples_seen"] >= state["total_samples"]))' "$demo/runs/demo/run.json" 2>/dev/null || echo 0; }
if [ "$(progress)" = 1 ]; then
  echo "The run is more than half done already."
else
  echo "\$ python ${train[*]} &"
  "$PYTHON" "${train[@]}" &
  pid=$!
  trap 'kill $pid 2>/dev/null || true' INT TERM EXIT
  while kill -0 "$pid" 2>/dev/null && [ "$(progress)" = 0 ]; do sleep 0.5; done
  kill -KILL "$pid" 2>/dev/null || { wait "$pid"; exit $?; }
  wait "$pid" 2>/dev/null || true
  trap - INT TERM EXIT
  echo "Killed process $pid with SIGKILL."
fi

step "4/6 The same command again resumes from the last checkpoint"
tell "${train[@]}"

step "5/6 Evaluation on the held-out patients"
tell scripts/evaluate.py "${run[@]}" checkpoint=best

step "6/6 Done. Open the report in a browser:"
echo "$PWD/$demo/runs/demo/evaluation/test/report.html"
