# To be sourced in the root of the project: sets `uv`, and defines find_python.

find_python() { # version -> an interpreter of it, or an error
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/python; do
    # A shim of pyenv is there even where its interpreter is not.
    if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, '$1'.split('.'))))" \
      >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  echo "Python $1 is not there: skipped" >&2
  return 1
}

uv=$(command -v uv || true)
if test -z "$uv"; then
  uv=$PWD/.matrix/uv/bin/uv
  test -x "$uv" || {
    mkdir -p .matrix
    "${PYTHON:-python3}" -m venv .matrix/uv && .matrix/uv/bin/pip -q install uv
  } >&2
fi
