#!/usr/bin/env bash
# Run the tests with several Pythons, releases and processors; print one row of a table for each.
#
#   scripts/test_matrix.sh [arguments of pytest]
#
# Environment variables:
#   PYTHONS     interpreters           (default: python3.11 python3.12 python3.13)
#   RELEASES    of the dependencies    (default: lowest pinned newest)
#   PROCESSORS  that are imitated, with the first interpreter and the pinned releases
#               (default: SSE4_2 AVX2 one-thread)
# The environments stay in .matrix/ and are made only once; delete that folder to make them anew.
# The order of the tests is random; .matrix/*.log name its seed.
set -u
cd "$(dirname "$0")/.."
PYTHONS=${PYTHONS:-python3.11 python3.12 python3.13}
RELEASES=${RELEASES:-lowest pinned newest}
PROCESSORS=${PROCESSORS-SSE4_2 AVX2 one-thread}
first=${PYTHONS%% *}
failures=0

mkdir -p .matrix
test -x .matrix/uv/bin/uv || { "$first" -m venv .matrix/uv && .matrix/uv/bin/pip -q install uv; }

environment() { # interpreter, releases
  local folder=.matrix/$(basename "$1")-$2 options
  case $2 in
    lowest) options=(--resolution lowest-direct) ;;
    pinned) options=(--constraint constraints.txt) ;;
    newest) options=(--upgrade) ;;
    *) echo "RELEASES must be of lowest, pinned, newest, got $2" >&2; exit 2 ;;
  esac
  test -e "$folder/complete" || {
    .matrix/uv/bin/uv venv -q --clear --python "$1" "$folder" &&
      .matrix/uv/bin/uv pip install -q --python "$folder" "${options[@]}" -e '.[dev]' &&
      touch "$folder/complete"
  } >&2
  echo "$folder"
}

row() { printf '| %-7s| %-8s| %-9s| %-8s| %-7s| %-11s| %7s| %7s| %8s|\n' "$@"; }

run() { # interpreter, releases, processor, settings; then the arguments of pytest
  local folder log summary versions processor=$3 settings=$4
  folder=$(environment "$1" "$2")
  log=.matrix/$(basename "$1")-$2-$processor.log
  versions=$("$folder/bin/python" -c 'import platform
from importlib.metadata import version
print(platform.python_version(), *map(version, ("jax", "flax", "optax")))') || versions="$1 - - -"
  set -- "$2" "${@:5}"
  env $settings "$folder/bin/python" -m pytest -q "${@:2}" >"$log" 2>&1 || failures=$((failures + 1))
  summary=$(tail -n 1 "$log")
  count() { grep -oE "[0-9.]+$1" <<<"$summary" | grep -oE '^[0-9.]+' || echo 0; }
  read -r python jax flax optax <<<"$versions"
  row "$python" "$1" "$jax" "$flax" "$optax" "$processor" \
    "$(count ' passed')" "$(count ' (failed|error)')" "$(count 's\b')"
}

row Python releases JAX Flax Optax processor passed failed seconds
row ------ -------- -------- ------- ------ ---------- -----: -----: ------:
for python in $PYTHONS; do
  for releases in $RELEASES; do
    run "$python" "$releases" native "" "$@"
  done
done
for processor in $PROCESSORS; do
  case $processor in
    SSE4_2) settings="XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 OPENBLAS_CORETYPE=Nehalem" ;;
    AVX2) settings="XLA_FLAGS=--xla_cpu_max_isa=AVX2 OPENBLAS_CORETYPE=Haswell" ;;
    one-thread)
      settings="XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1 taskset -c 0" ;;
    *) echo "PROCESSORS must be of SSE4_2, AVX2, one-thread, got $processor" >&2; exit 2 ;;
  esac
  run "$first" pinned "$processor" "$settings" "$@"
done
exit $((failures > 0))
