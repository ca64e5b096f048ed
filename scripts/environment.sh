# Sourced by demo.sh and test.sh: leaves in $PYTHON an interpreter that has this project installed.
#
# An existing environment is used as it is when named by ECGFOUNDER_ENV=DIR or `--env DIR` (a GPU
# machine's torch is not changed). Otherwise .venv is made here with the versions and hashes of
# scripts/constraints-cpu.txt or -cuda.txt, and reused until they change.
# ECGFOUNDER_TORCH_INDEX=URL takes torch from another package index, for instance PyTorch's CPU one.

fail() { echo "error: $*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    command -v "$candidate"
    return
  done
  fail "Python 3.11 or newer is needed. On Debian or Ubuntu: apt-get install python3 python3-venv"
}

make_venv() {
  local base=$1
  "$base" -m venv .venv >/dev/null 2>&1 && return
  # Debian splits ensurepip off into a package of its own.
  rm -rf .venv
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing python3-venv ..."
    apt-get update -qq >/dev/null && apt-get install -y -qq python3-venv >/dev/null || true
  fi
  "$base" -m venv .venv || fail "cannot make .venv; on Debian or Ubuntu: apt-get install python3-venv"
}

# The lock that goes with the installed torch: a CUDA build requires NVIDIA's libraries.
lock_of_torch() {
  if "$PYTHON" -c 'import importlib.metadata as m, sys
sys.exit("nvidia" not in " ".join(m.requires("torch") or []))'; then
    echo scripts/constraints-cuda.txt
  else
    echo scripts/constraints-cpu.txt
  fi
}

prepare_environment() {
  if [ -n "${ECGFOUNDER_ENV:-}" ]; then
    PYTHON=$ECGFOUNDER_ENV/bin/python
    [ -x "$PYTHON" ] || fail "ECGFOUNDER_ENV=$ECGFOUNDER_ENV has no bin/python"
    "$PYTHON" -c 'import ecgfounder_train' 2>/dev/null || fail \
      "the environment $ECGFOUNDER_ENV lacks this project; run: $PYTHON -m pip install -e '.[dev]'"
    return
  fi
  local base stamp
  base=$(find_python) || exit 1
  stamp=$(cat pyproject.toml scripts/constraints*.txt | sha256sum | cut -c1-16)
  PYTHON=$PWD/.venv/bin/python
  if [ "$(cat .venv/installed 2>/dev/null)" != "$stamp" ]; then
    echo "Making the environment .venv (a few minutes, once) ..."
    [ -x "$PYTHON" ] || make_venv "$base"
    local pip=("$PYTHON" -m pip --disable-pip-version-check -q)
    # torch by its version alone: its builds for CPUs and for each CUDA have hashes of their own.
    "${pip[@]}" install --no-deps \
      ${ECGFOUNDER_TORCH_INDEX:+--index-url "$ECGFOUNDER_TORCH_INDEX"} \
      "$(grep '^torch==' scripts/constraints.txt)" || fail "torch could not be installed (see above)"
    "${pip[@]}" install --no-deps --require-hashes -r "$(lock_of_torch)" \
      || fail "the packages could not be installed (see above)"
    "${pip[@]}" install --no-deps -e . || fail "this project could not be installed (see above)"
    echo "$stamp" >.venv/installed
  fi
}

if [ "${1:-}" = --env ]; then
  [ -n "${2:-}" ] || fail "--env needs the folder of an environment"
  ECGFOUNDER_ENV=$2
  shift 2
fi
prepare_environment
export PYTHON
