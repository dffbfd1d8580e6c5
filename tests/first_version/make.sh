#!/usr/bin/env bash
# Makes first-version.tar.xz anew: a project folder as version 0.1.0 (commit d775665) leaves it, which later versions must
# be able to read, report, resume and tune on. Usage: make.sh PROGRAM (the cifar-ablate of an environment with d775665)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=$(realpath "${1:?usage: make.sh PROGRAM}")
place=/tmp/first-version # MLflow keeps absolute addresses; the tests put the folder they unpack to in its place
rm -rf "$place" && mkdir "$place" && cd "$place"
cp "$here"/*.yaml .
unset MLFLOW_TRACKING_URI OPTUNA_STORAGE
export OMP_NUM_THREADS=1 CIFAR_ABLATE_JOBS=1 MLFLOW_DISABLE_TELEMETRY=true

"$program" run small.yaml
"$program" tune small.yaml --arm baseline --write
"$program" run small-tuned.yaml --seed 0
"$program" export small record

"$program" run interrupted.yaml --arm plain
"$program" run interrupted.yaml --arm mixed --seed 0 >interrupted.log 2>&1 &
command=$!
until tr '\r' '\n' <interrupted.log | grep -q 'epoch 2/4'; do sleep 0.05; done
kill -TERM "$command"
wait "$command" || echo "interrupted with exit code $?"

for study in small small-tuned interrupted; do
  "$program" report "$study" --format json >"expected-$study.json"
  "$program" report "$study" --output "expected-$study.md"
done
"$program" plan small.yaml small-tuned.yaml interrupted.yaml >expected-plan.txt || true
# small enough to commit: no pictures, and weights of one run only, which can still be promoted
rm -rf interrupted.log figures
find mlruns -name '*.png' -delete
kept=$(awk -F, '$1 == "larger" && $2 == 0 { print $5 ":" $7 }' record/runs.csv) # its fingerprint and its MLflow run
find mlruns -name weights.safetensors -not -path "*/${kept%:*}/*" -not -path "*/${kept#*:}/*" -delete
tar -cJf "$here/first-version.tar.xz" -C "$place" .
ls -l "$here/first-version.tar.xz"
