#!/usr/bin/env bash
# Builds or reuses the environment, then runs ruff and pytest. Arguments go to pytest:
#   tools/run_tests.sh                    everything, slow tests too
#   tools/run_tests.sh -m "not slow"      the quick tests
#   tools/run_tests.sh tests/test_models -k rotary
#   tools/run_tests.sh -m fuzz            damaged input, 10,000 cases for each target: some hours
#   tools/run_tests.sh -n 0 --pdb         in one process, e.g. to debug
# The environment can be chosen with the variables at the top of tools/_venv.sh.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

run_ruff() {
  say "ruff check"
  "$VENV_PYTHON" -m ruff check --quiet --output-format=concise . || die "ruff found the problems above; fix them first"
  say "ruff format --check"
  "$VENV_PYTHON" -m ruff format --quiet --check . || die "format the files above: ruff format ."
}

main() {
  ensure_venv
  cd "$REPO_ROOT"
  # A worker per core, but no more than the memory of a laptop carries.
  local cores workers
  cores="$(getconf _NPROCESSORS_ONLN)"
  workers=$((cores < 4 ? cores : 4))
  # Tiny tensors: more threads only fight each other, above all with several processes.
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"
  export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg
  run_ruff
  say "pytest $*"
  # Tests of one file share what its first one made. In the files' order: the long ones, of which
  # reordering makes the last, are in the middle of the alphabet.
  # Short tracebacks: the cause of a failure stays on the screen.
  "$VENV_PYTHON" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --tb=short "$@"
}

main "$@"
