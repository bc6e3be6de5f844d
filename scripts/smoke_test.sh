#!/usr/bin/env bash
# Install wheel and sdist into fresh environments and try them; print one row of a table for each.
#
#   scripts/smoke_test.sh [folder with wheel and sdist (default: dist)]
#
# Environment variables:
#   PYTHONS    versions             (default: 3.11 3.12 3.13); one that is not there is skipped
#   ARTEFACTS  what is installed    (default: wheel sdist)
#   RELEASES   of the dependencies  (default: newest lowest); sdists are tried with the newest only
# Needs `uv`, or a way to install it into .matrix/.
set -u
cd "$(dirname "$0")/.."
dist=$(cd "${1:-dist}" 2>/dev/null && pwd) || { echo "no packages: run make package" >&2; exit 2; }
PYTHONS=${PYTHONS:-3.11 3.12 3.13}
ARTEFACTS=${ARTEFACTS:-wheel sdist}
RELEASES=${RELEASES:-newest lowest}
source scripts/find_tools.sh
script=$PWD/scripts/smoke_test.py
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0 tried=0

row() { printf '| %-7s| %-9s| %-9s| %-9s| %-8s| %-8s| %-7s| %-7s|\n' "$@"; }

try() { # interpreter, artefact, releases
  local file folder="$work/environment" options=() versions result=ok
  case $2 in
    wheel) file=$(ls "$dist"/*.whl) ;;
    sdist) file=$(ls "$dist"/*.tar.gz) ;;
    *) echo "ARTEFACTS must be of wheel, sdist, got $2" >&2; exit 2 ;;
  esac
  case $3 in
    newest) ;;
    lowest) # of what pyproject.toml names; beside a package, "direct" would be the package alone
      "$uv" pip compile -q --resolution lowest-direct --python "$1" --extra cli --extra data \
        pyproject.toml -o "$work/lowest.txt" >&2
      options=(--constraint "$work/lowest.txt")
      ;;
    *) echo "RELEASES must be of newest, lowest, got $3" >&2; exit 2 ;;
  esac
  tried=$((tried + 1))
  versions=$(
    "$uv" venv -q --clear --python "$1" "$folder" >&2 &&
      "$uv" pip install -q --python "$folder" "${options[@]}" "opifex-multilevel[cli,data] @ file://$file" >&2 &&
      cd "$work" && "$folder/bin/python" -W error::RuntimeWarning "$script" 2>"$work/log"
  ) || { result=FAILED; failures=$((failures + 1)); tail -n 20 "$work/log" >&2; }
  read -r python jax flax optax numpy <<<"${versions:-$("$1" -c 'import platform; print(platform.python_version())') - - - -}"
  row "$python" "$2" "$3" "$jax" "$flax" "$optax" "$numpy" "$result"
}

row Python artefact releases JAX Flax Optax NumPy result
row ------ -------- -------- --- ---- ----- ----- ------
for number in $PYTHONS; do
  interpreter=$(find_python "$number") || { row "$number" - - - - - - skipped; continue; }
  for artefact in $ARTEFACTS; do
    for releases in $RELEASES; do
      test "$artefact $releases" = "sdist lowest" || try "$interpreter" "$artefact" "$releases"
    done
  done
done
test "$tried" -gt 0 || { echo "none of the interpreters $PYTHONS is there" >&2; exit 2; }
exit $((failures > 0))
