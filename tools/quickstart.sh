#!/usr/bin/env bash
# From a clone to a trained model on a laptop CPU: environment, data, training, evaluation, table.
#   tools/quickstart.sh
#
#   PIXELSAIL_WORK    where checkpoint, results and pictures go (default: work_dirs/quickstart)
#   PIXELSAIL_DATA    where the ShapesWorld images are drawn (default: data/shapes_world_mini, as in
#                     the config, which reads the variable too)
#   PIXELSAIL_QUICK   1: few images and iterations, to see that every step runs; the numbers mean
#                     nothing and go to other folders (quickstart_smoke, shapes_world_smoke)
# The environment can be chosen with the variables at the top of tools/_venv.sh.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

CONFIG=configs/pixelsail/pixelsail_mini.py
DATA="${PIXELSAIL_DATA:-$REPO_ROOT/data/shapes_world_mini}"
WORK="${PIXELSAIL_WORK:-$REPO_ROOT/work_dirs/quickstart}"
DATA_OPTIONS=()
TRAIN_OPTIONS=()
TARGET_CIOU='>=0.66'
TARGET_MCQ='>=0.50'
# A model that does not listen to the expression scores as high with another image's.
TARGET_CONTROL='<=0.5*refseg/cIoU'
STAGES=()
QUICK="${PIXELSAIL_QUICK:-0}"
if [[ "$QUICK" == 1 ]]; then
  DATA="${PIXELSAIL_DATA:-$REPO_ROOT/data/shapes_world_smoke}"
  WORK="${PIXELSAIL_WORK:-$REPO_ROOT/work_dirs/quickstart_smoke}"
  DATA_OPTIONS=(--train 32 --val 8 --test 8)
  TRAIN_OPTIONS=(train_cfg.max_iters=8)
  TARGET_CIOU='>=0'
  TARGET_MCQ='>=0'
  TARGET_CONTROL='<=1'
fi

# Runs a step, tells its duration and keeps it for the table.
stage() {
  local name="$1" start=$SECONDS
  shift
  say "$name ..."
  "$@"
  STAGES+=(--stage "$name=$((SECONDS - start))")
  say "$name took $((SECONDS - start))s"
}

# The folder appears only when it is complete, so its existence is the test.
draw_data() {
  if [[ -d "$DATA" ]]; then
    say "  already drawn: $DATA"
    return
  fi
  "$VENV_PYTHON" tools/dataset_converters/make_shapes_world.py --preset mini --seed 0 \
    --workers "$(getconf _NPROCESSORS_ONLN)" \
    --out "$DATA" ${DATA_OPTIONS[@]+"${DATA_OPTIONS[@]}"}
}

# The small operations of a small model gain little from threads: on a CPU two processes with half a
# batch each take about two thirds of the time of one process with two threads.
count_processes() {
  local cores
  cores="$(getconf _NPROCESSORS_ONLN)"
  if [[ "$cores" -lt 2 ]] || "$VENV_PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
  then echo 1; else echo 2; fi
}

train() {
  PYTHON="$VENV_PYTHON" tools/dist_train.sh "$CONFIG" "$PROCESSES" --deepspeed none \
    --work-dir "$WORK" --cfg-options "train_dataloader.batch_size=$((8 / PROCESSES))" \
    ${TRAIN_OPTIONS[@]+"${TRAIN_OPTIONS[@]}"}
}

evaluate() {
  [[ -f "$WORK/last_checkpoint" ]] || die "training left no $WORK/last_checkpoint"
  PYTHON="$VENV_PYTHON" tools/dist_test.sh "$CONFIG" "$(cat "$WORK/last_checkpoint")" "$PROCESSES" \
    --work-dir "$WORK" --out "$WORK/results.json" --show-dir "$WORK/pictures"
}

report() {
  "$VENV_PYTHON" tools/misc/quickstart_report.py "$WORK/results.json" \
    --row "referring segmentation, cIoU" refseg/cIoU "$TARGET_CIOU" \
    --row "multiple choice, accuracy" mcq/accuracy "$TARGET_MCQ" \
    --row "control: shuffled expressions, cIoU" shuffled/cIoU "$TARGET_CONTROL" \
    "${STAGES[@]}" --pictures "$WORK/pictures"
}

main() {
  [[ $# -eq 0 ]] || die "quickstart.sh takes no arguments; see the variables at its top"
  cd "$REPO_ROOT"
  stage environment ensure_venv
  PROCESSES="$(count_processes)"
  export PIXELSAIL_DATA="$DATA"
  mkdir -p "$WORK"
  stage data draw_data
  stage training train
  stage evaluation evaluate
  report || die "a target was missed; the log is under $WORK"
  [[ "$QUICK" != 1 ]] || say "PIXELSAIL_QUICK=1: the steps run; the numbers mean nothing"
}

main "$@"
