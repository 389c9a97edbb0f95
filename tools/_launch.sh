# Sourced by dist_train.sh and dist_test.sh: launch NPROC SCRIPT [ARGUMENTS] starts NPROC processes.

launch() {
  local processes=$1 cores
  shift
  if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]]; then
    echo "error: NPROC must be a number of processes, got '$processes'" >&2
    exit 2
  fi
  cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
  local threads=$((cores / processes))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
  export PYTHONPATH="$(dirname "$TOOLS")${PYTHONPATH:+:$PYTHONPATH}"
  local rendezvous=(--standalone)  # one machine: a free port is found
  if [ "${NNODES:-1}" -gt 1 ]; then
    rendezvous=(--nnodes "$NNODES" --node_rank "${NODE_RANK:-0}"
      --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
  fi
  exec "${PYTHON:-python}" -m pixelsail_mm.engine.processes "${rendezvous[@]}" \
    --nproc_per_node "$processes" "$@"
}
