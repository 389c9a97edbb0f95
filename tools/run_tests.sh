#!/usr/bin/env bash
# Builds or reuses the environment, then runs ruff and pytest. Arguments go to pytest:
#   tools/run_tests.sh                    everything, slow tests too
#   tools/run_tests.sh -m "not slow"      the quick tests
#   tools/run_tests.sh tests/test_models -k rotary
# The environment can be chosen with the variables at the top of tools/_venv.sh.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_venv.sh"

run_ruff() {
  say "ruff check"
  "$VENV_PYTHON" -m ruff check --quiet --output-format=concise . || die "ruff found the problems above; fix them first"
}

main() {
  ensure_venv
  cd "$REPO_ROOT"
  # Tiny tensors: more threads than this only fight each other, above all with several processes.
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-2}"
  export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg
  run_ruff
  say "pytest $*"
  "$VENV_PYTHON" -m pytest "$@"
}

main "$@"
