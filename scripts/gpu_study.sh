#!/usr/bin/env bash
# Everything that is published from a GPU, step by step: correctness, benchmarks, the studies and their retrains.
#
#   scripts/gpu_study.sh                  all steps that are not done yet
#   scripts/gpu_study.sh study rerank     these steps
#   scripts/gpu_study.sh --list           what there is, in order
#   scripts/gpu_study.sh --dry-run        every step at a tiny size on the CPU, into a temporary folder
#
# Every step ends within 8 minutes ($STEP_S seconds), and all of a call within $TOTAL_S, if set. A study or a retrain
# that is cut off goes on where it stood at the next call, from its storage and checkpoints in results/runs/, a benchmark
# begins anew; a step that is done is skipped, and one that needs another waits until that is done. A step that fails
# says so, and the others go on; the exit code is 1 then. $PYTHON names the interpreter (default: python), $STUDY_DATA
# the folder with cifar-10-batches-py, --out another folder than results/runs/ for the studies, --results another one than
# results/ for what is published, and $GPU_EPOCHS the length of the retrains (default: 300).
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
step_limit=${STEP_S:-480}
total=${TOTAL_S:-}
epochs=${GPU_EPOCHS:-300}
device=cuda
dry=
runs=results/runs
published=results
wanted=()

usage() {
  echo "error: $1" >&2
  exit 2
}

steps=(
  correctness same-as-cpu
  throughput throughput-cores epoch trials-per-hour slots busy busy-augmented memory startup
  study rerank retrain reference yardstick distilled
  study-100k rerank-100k retrain-100k
  samplers publish
)
# What a step works on: a list of the best that was made too early would stay.
declare -A needs=(
  [rerank]=study [retrain]=rerank [yardstick]=rerank [distilled]=rerank
  [rerank-100k]=study-100k [retrain-100k]=rerank-100k
)
# Compilers of several trainings at once share the cores with the processes that augment.
export TORCHINDUCTOR_COMPILE_THREADS=${TORCHINDUCTOR_COMPILE_THREADS:-4}

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --list) printf '%s\n' "${steps[@]}"; exit 0 ;;
    --out) [ $# -gt 1 ] || usage "--out needs a folder."; runs=$2; shift ;;
    --results) [ $# -gt 1 ] || usage "--results needs a folder."; published=$2; shift ;;
    -*) usage "There is no option $1: --dry-run, --list, --out DIR, --results DIR, or names of steps." ;;
    *) [[ " ${steps[*]} " == *" $1 "* ]] || usage "There is no step $1: scripts/gpu_study.sh --list names them."
       wanted+=("$1") ;;
  esac
  shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${steps[@]}")

# What is small in a dry run, and nothing elsewhere.
tiny_bench=() tiny_study=() tiny_rerank=() tiny_retrain=() seeds=5 trials=50
if [ -n "$dry" ]; then
  device=cpu
  runs=$(mktemp -d)
  trap 'rm -rf "$runs"' EXIT
  published=$runs/published
  epochs=1 seeds=2 trials=3
  tiny_study=(--train-images 300 --val-images 200 --epochs 2 --space dilated)
  tiny_rerank=(--top 2 --train-images 300 --val-images 200 --epochs 1)
  tiny_retrain=(--train-images 300)
fi
markers=$runs/gpu_study
mkdir -p "$markers" || usage "The folder $runs cannot be made; name another with --out."
where=(--study-name best --out "$runs/best")
where_100k=(--study-name best-100k --out "$runs/best-100k")

bench() { # name, then its options; those after -- only in a dry run
  local name=$1 options=() small=() split=
  shift
  for word in "$@"; do
    if [ "$word" = -- ]; then split=1; elif [ -n "$split" ]; then small+=("$word"); else options+=("$word"); fi
  done
  [ -n "$dry" ] || small=()
  "$python" scripts/benchmark.py "$name" --device "$device" --out "$published/benchmarks" \
    ${options[@]+"${options[@]}"} ${small[@]+"${small[@]}"}
}

cores=$("$python" -c "from study.calibration import n_cores; print(n_cores())") || usage "$python cannot import study."

run_step() {
  case $1 in
    correctness) correctness ;;
    same-as-cpu)
      "$python" scripts/same_as_cpu.py --device "$device" ${dry:+--train-images 300 --epochs 1 --val-images 200} ;;
    # Far more images than loaders prepare ahead, else their work would not be seen.
    throughput) bench throughput --workers 2 --images 30720 -- --images 512 --samples 2 ;;
    throughput-cores) bench throughput --workers "$cores" --images 30720 -- --images 512 --samples 2 ;;
    epoch) bench epoch --images 45000 -- --images 300 --val-images 200 --epochs 2 ;;
    trials-per-hour) bench trials-per-hour -- --repeats 1 --trials 2 --epochs 1 --train-images 300 --val-images 200 ;;
    slots) bench slots --samples 3 -- --samples 1 --images 256 ;;
    busy) bench busy -- --images 512 ;;
    busy-augmented) bench busy --augment --images 38400 -- --images 512 ;;
    memory) bench memory -- --trials 4 --settle 1 --train-images 300 --val-images 200 ;;
    startup) bench startup -- --samples 1 ;;
    study) "$python" -m study.run --space best --trials "$trials" --device "$device" "${where[@]}" \
      ${tiny_study[@]+"${tiny_study[@]}"} ;;
    # A cut-off trial starts anew: few at once, so that each call finishes some.
    rerank) "$python" -m study.rerank --jobs 2 --device "$device" "${where[@]}" ${tiny_rerank[@]+"${tiny_rerank[@]}"} ;;
    retrain) retrain "${where[@]}" ;;
    reference) retrain --reference "${where[@]}" ;;
    yardstick) retrain --yardstick "${where[@]}" ;;
    distilled) retrain --teacher "${where[@]}" ;;
    study-100k) "$python" -m study.run --space best --max-params 100000 --trials "$trials" --device "$device" \
      "${where_100k[@]}" ${tiny_study[@]+"${tiny_study[@]}"} ;;
    rerank-100k) "$python" -m study.rerank --jobs 2 --device "$device" "${where_100k[@]}" \
      ${tiny_rerank[@]+"${tiny_rerank[@]}"} ;;
    retrain-100k) retrain "${where_100k[@]}" ;;
    samplers) samplers ;;
    publish) publish ;;
  esac
}

correctness() {
  if [ -z "$dry" ]; then # the tests would be skipped, which looks like success
    "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || { echo "There is no GPU." >&2; return 1; }
    [ -n "${STUDY_DATA:-}" ] || { echo "\$STUDY_DATA names no folder." >&2; return 1; }
  fi
  "$python" -m pytest -q -m gpu tests/study/test_gpu.py
}

retrain() {
  "$python" -m study.retrain --device "$device" --epochs "$epochs" --seeds "$seeds" "$@" \
    ${tiny_retrain[@]+"${tiny_retrain[@]}"}
}

samplers() {
  if [ -n "$dry" ]; then
    "$python" scripts/samplers.py --seeds 1 --trials 2 --fuller-epochs 1 --fuller-images 300 \
      --runs "$runs/samplers" --results "$published/samplers" -- \
      --epochs 1 --train-images 300 --val-images 200 --device cpu --jobs 1
  else
    "$python" scripts/samplers.py --space best --seeds 3 --trials 30 --fuller-epochs 80 \
      --runs "$runs/samplers" --results "$published/samplers"
  fi
}

publish() {
  local name
  for name in best best-100k; do
    [ ! -e "$runs/$name/study.db" ] ||
      "$python" scripts/publish.py --study-name "$name" --out "$runs/$name" --results "$published" || return
  done
}

status=0
for step in "${wanted[@]}"; do
  if [ -e "$markers/$step" ]; then
    echo "== $step: done before, in $(cat "$markers/$step") s"
    continue
  fi
  before=${needs[$step]-}
  if [ -n "$before" ] && [ ! -e "$markers/$before" ]; then
    status=1
    echo "== $step: waits for $before"
    continue
  fi
  limit=$step_limit
  if [ -n "$total" ]; then
    left=$((total - SECONDS - 40)) # a cut-off step has half a minute to save what it has
    if [ "$left" -lt 10 ]; then
      status=1
      echo "== $step: no time left; the same command goes on"
      continue
    fi
    [ "$left" -ge "$limit" ] || limit=$left
  fi
  echo "== $step"
  started=$SECONDS
  # A step is ended as Ctrl-C would, so that it saves what it has.
  ( set -m; run_step "$step" & child=$!
    ( sleep "$limit"; kill -INT -- "-$child" 2>/dev/null; sleep 30; kill -KILL -- "-$child" 2>/dev/null ) >/dev/null 2>&1 &
    watch=$!
    wait "$child"; code=$?
    kill -- "-$watch" 2>/dev/null
    exit "$code" )
  code=$?
  took=$((SECONDS - started))
  if [ "$code" -eq 0 ]; then
    echo "$took" >"$markers/$step"
    echo "== $step: done in $took s"
  elif [ "$took" -ge "$limit" ]; then
    status=1
    echo "== $step: cut off after $took s; the same command goes on"
  else
    status=1
    echo "== $step: FAILED with exit code $code after $took s"
  fi
done
exit "$status"
