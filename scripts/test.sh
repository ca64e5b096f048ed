#!/usr/bin/env bash
# Format, lint, types, tests. Usage: bash scripts/test.sh [--env DIR] [--all] [pytest arguments]
# --all also runs the tests marked `slow` at their full size (at most 90 minutes).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

if [ "${1:-}" = --all ]; then
  export ECG_TEST_TIER=all
  shift
fi
"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
# One thread per process: two workers with two threads each only get in each other's way.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
