#!/usr/bin/env bash
# Test with several processes: tools/dist_test.sh CONFIG CHECKPOINT NPROC [arguments of tools/test.py]
set -euo pipefail

if [ $# -lt 3 ]; then
  echo "usage: $0 CONFIG CHECKPOINT NPROC [arguments of tools/test.py]" >&2
  exit 2
fi
CONFIG=$1 CHECKPOINT=$2 NPROC=$3
shift 3

TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$TOOLS/_launch.sh"

launch "$NPROC" "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
