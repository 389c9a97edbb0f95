#!/usr/bin/env bash
# Train on a Slurm cluster: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS can be set, as in MMDetection. In a batch job
# REQUEUE=1 queues the job again when a signal stopped the training, which has saved then:
#   sbatch --requeue --signal=TERM@120 ... --wrap "REQUEUE=1 tools/slurm_train.sh ... --resume"
set -euo pipefail

if [ $# -lt 4 ]; then
  echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]" >&2
  exit 2
fi
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 WORK_DIR=$4
shift 4
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PYTHONPATH="$(dirname "$TOOLS")${PYTHONPATH:+:$PYTHONPATH}"

ZERO=(--deepspeed zero2)
for argument in "$@"; do
  case "$argument" in --deepspeed | --deepspeed=*) ZERO=() ;; esac
done

STATUS=0
srun -p "$PARTITION" --job-name="$JOB_NAME" --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" \
  --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
  ${SRUN_ARGS:-} "${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --work-dir "$WORK_DIR" \
  --launcher slurm ${ZERO[@]+"${ZERO[@]}"} "$@" || STATUS=$?
# 75: stopped by a signal (pixelsail_mm.errors.STOPPED); srun gives the highest of all tasks.
if [ "$STATUS" -eq 75 ] && [ "${REQUEUE:-0}" = 1 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$STATUS"
