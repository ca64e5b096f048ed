#!/usr/bin/env bash
# Writes the full locks with hashes, scripts/constraints-cpu.txt and scripts/constraints-cuda.txt,
# from pyproject.toml and the pins of scripts/constraints.txt. Needs uv (pip install uv).
# torch itself is not in them: its builds have hashes of their own, so it is installed by version.
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {
  uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
    --constraint <(grep -v "^triton" scripts/constraints.txt) --no-emit-package torch --quiet --no-annotate \
    --custom-compile-command "bash scripts/lock.sh" "$@"
}
lock --output-file scripts/constraints-cuda.txt
# A CPU build of torch has neither CUDA's libraries nor a pin of triton.
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
grep '^triton==' scripts/constraints.txt >"$overrides"
mapfile -t cuda < <(grep -oE '^(nvidia|cuda)-[a-z0-9-]+' scripts/constraints-cuda.txt)
lock --override "$overrides" "${cuda[@]/#/--no-emit-package=}" \
  --output-file scripts/constraints-cpu.txt
