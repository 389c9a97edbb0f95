# Sourced by quickstart.sh and run_tests.sh: creates or reuses the virtual environment of the lock.
#
#   PYTHON                 interpreter to build it with (default: python3.11, 3.12, 3.10, python3)
#   PIXELSAIL_LOCK         lock file (default: requirements/lock.txt; requirements/README.md)
#   PIXELSAIL_VENV         its folder (default: .venv in the source tree, .venv-NAME for lock-NAME.txt)
#   PIXELSAIL_NO_INSTALL   1: use PIXELSAIL_VENV exactly as it is, e.g. with your own CUDA build
#
# ensure_venv sets VENV_PYTHON and exports PYTHONPATH, so that this source tree wins over any other
# copy of the package. The lock's hash is stamped after its install: an interrupted install goes on
# where it stopped, a finished one is reused in a second.

REPO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PIXELSAIL_LOCK="${PIXELSAIL_LOCK:-$REPO_ROOT/requirements/lock.txt}"
default_venv() {
  local name
  name="$(basename "$PIXELSAIL_LOCK" .txt)"
  [[ "$name" == lock ]] && echo "$REPO_ROOT/.venv" || echo "$REPO_ROOT/.venv-${name#lock-}"
}
PIXELSAIL_VENV="${PIXELSAIL_VENV:-$(default_venv)}"

say() { printf '[pixelsail] %s\n' "$*"; }

die() {
  printf '[pixelsail] ERROR: %s\n' "$*" >&2
  exit 1
}

is_usable_python() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
    >/dev/null 2>&1
}

find_python() {
  local candidate
  if [[ -n "${PYTHON:-}" ]]; then
    is_usable_python "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12 with venv"
    echo "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.10 python3; do
    if is_usable_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  die "no Python 3.10, 3.11 or 3.12 with the venv module found; install one (Debian and Ubuntu:" \
    "python3 and python3-venv) or name it: PYTHON=/path/to/python3.11"
}

lock_hash() {
  "$1" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' \
    "$PIXELSAIL_LOCK"
}

lock_is_installed() {
  [[ -x "$VENV_PYTHON" && -f "$PIXELSAIL_VENV/.pixelsail_lock" ]] || return 1
  local wanted
  wanted="$(lock_hash "$VENV_PYTHON" 2>/dev/null)" || return 1
  [[ "$(cat "$PIXELSAIL_VENV/.pixelsail_lock")" == "$wanted" ]]
}

# The editable install may name another clone, as long as that clone still exists (PYTHONPATH wins).
source_is_installed() {
  [[ -f "$PIXELSAIL_VENV/.pixelsail_source" ]] \
    && [[ -f "$(cat "$PIXELSAIL_VENV/.pixelsail_source")/setup.py" ]]
}

venv_is_ready() { lock_is_installed && source_is_installed; }

check_given_environment() {
  [[ -x "$VENV_PYTHON" ]] || die "PIXELSAIL_NO_INSTALL=1, but $VENV_PYTHON does not exist"
  "$VENV_PYTHON" - <<'PY' || die "complete that environment (see requirements/) or unset PIXELSAIL_NO_INSTALL"
import sys
from importlib.util import find_spec
missing = [m for m in ('torch', 'mmengine', 'mmcv', 'mmdet', 'xtuner', 'transformers')
           if find_spec(m) is None]
if missing:
    sys.exit(f'[pixelsail] {sys.executable} has no {", ".join(missing)}')
PY
}

# pip's many lines become one every ten packages, plus one per large download; errors pass through.
show_progress() {
  local total="$1" count=0 line
  local large='Downloading (.*/)?([^/ ]+) \(([0-9]{3,}[0-9.]* MB|[0-9.]+ GB)\)'
  while IFS= read -r line; do
    case "$line" in
      # "Ignoring": the lock names it for another Python or system.
      "Collecting "* | "Processing "* | "Requirement already satisfied"* | "Ignoring "*)
        count=$((count + 1))
        ((count % 10)) || say "  package $count of $total (${SECONDS}s)"
        ;;
      "Installing collected packages"*) say "  unpacking, the longest step (${SECONDS}s)" ;;
      ERROR* | error:*) printf '%s\n' "$line" >&2 ;;
    esac
    if [[ "$line" =~ $large ]]; then
      say "  downloading ${BASH_REMATCH[2]} (${BASH_REMATCH[3]})"
    fi
  done
}

install_lock() {
  local log="$PIXELSAIL_VENV/pixelsail_install.log"
  say "installing $(basename "$PIXELSAIL_LOCK"); the first time takes 3 to 10 minutes and 7 GB"
  say "  full output: $log"
  SECONDS=0
  "$VENV_PYTHON" -m pip install --no-deps --progress-bar off -r "$PIXELSAIL_LOCK" 2>&1 \
    | tee "$log" | show_progress "$(grep -cE '^[A-Za-z0-9]' "$PIXELSAIL_LOCK")" \
    || die "pip failed; see $log. Run the same command again to go on where it stopped"
}

create_venv() {
  if [[ -x "$VENV_PYTHON" ]] && "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
    say "completing the environment $PIXELSAIL_VENV"
    return
  fi
  if [[ -n "$(ls -A "$PIXELSAIL_VENV" 2>/dev/null)" && ! -f "$PIXELSAIL_VENV/pyvenv.cfg" ]]; then
    die "$PIXELSAIL_VENV is not empty and not a virtual environment; choose another PIXELSAIL_VENV"
  fi
  local python
  python="$(find_python)"
  say "creating the environment $PIXELSAIL_VENV with $("$python" --version)"
  "$python" -m venv --clear "$PIXELSAIL_VENV"
}

install_venv() {
  if ! lock_is_installed; then # else another process finished it while this one waited
    create_venv
    rm -f "$PIXELSAIL_VENV/.pixelsail_lock"
    install_lock
    lock_hash "$VENV_PYTHON" >"$PIXELSAIL_VENV/.pixelsail_lock"
  fi
  if ! source_is_installed; then
    say "installing pixelsail_mm itself in editable mode"
    "$VENV_PYTHON" -m pip install --quiet --no-deps --no-build-isolation -e "$REPO_ROOT" \
      || die "the editable install of $REPO_ROOT failed (output above)"
    printf '%s\n' "$REPO_ROOT" >"$PIXELSAIL_VENV/.pixelsail_source"
  fi
  say "environment ready"
}

ensure_venv() {
  VENV_PYTHON="$PIXELSAIL_VENV/bin/python"
  export PYTHONPATH="$REPO_ROOT${PYTHONPATH:+:$PYTHONPATH}"
  export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
  if [[ "${PIXELSAIL_NO_INSTALL:-0}" == 1 ]]; then
    check_given_environment
    say "using $PIXELSAIL_VENV as it is"
    return
  fi
  [[ -f "$PIXELSAIL_LOCK" ]] || die "lock file $PIXELSAIL_LOCK does not exist"
  if venv_is_ready; then
    say "using the environment $PIXELSAIL_VENV"
    return
  fi
  mkdir -p "$(dirname "$PIXELSAIL_VENV")"
  # Two installs into one folder would spoil it; the second waits, then finds the stamp.
  (
    if command -v flock >/dev/null; then
      flock --nonblock 9 || { say "waiting for another install of $PIXELSAIL_VENV"; flock 9; }
    fi
    install_venv
  ) 9>"$PIXELSAIL_VENV.lock"
}
