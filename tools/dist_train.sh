#!/usr/bin/env bash
# Train with several processes on one machine (or, with NNODES, several):
#   tools/dist_train.sh CONFIG NPROC [arguments of tools/train.py]
# With a GPU per process NCCL is used, without GPUs gloo on the CPU. ZeRO-2 unless --deepspeed says
# otherwise; --deepspeed none is plain data parallel.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT as in MMDetection.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 CONFIG NPROC [arguments of tools/train.py]" >&2
  exit 2
fi
CONFIG=$1 NPROC=$2
shift 2

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$TOOLS/_launch.sh"

ZERO=(--deepspeed zero2)
for argument in "$@"; do
  case "$argument" in --deepspeed | --deepspeed=*) ZERO=() ;; esac
done

launch "$NPROC" "$TOOLS/train.py" "$CONFIG" --launcher pytorch ${ZERO[@]+"${ZERO[@]}"} "$@"
