#!/usr/bin/env bash
# Build and check a release, and tag it. Nothing is tagged or uploaded unless --tag is given.
#
#   scripts/release.sh          dry run: all checks, packages in dist/
#   scripts/release.sh --tag    the same, then the annotated tag v<version>
#
# Uploading stays a decision of a person: `twine upload dist/*` afterwards, and `git push --tags`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
case ${1:-} in
  "") tag=no ;;
  --tag) tag=yes ;;
  *) echo "usage: scripts/release.sh [--tag], got $1" >&2; exit 2 ;;
esac
fail() { echo "release: $*" >&2; exit 1; }

version=$("$python" - <<'PROGRAM'
import re, tomllib, pathlib
read = lambda name: pathlib.Path(name).read_text(encoding="utf-8")
said = {
    "pyproject.toml": tomllib.loads(read("pyproject.toml"))["project"]["version"],
    "src/opifex/__init__.py": re.search(r'__version__ = "(.*)"', read("src/opifex/__init__.py"))[1],
    "CITATION.cff": re.search(r"(?m)^version: (.*)$", read("CITATION.cff"))[1],
}
if len(set(said.values())) > 1:
    raise SystemExit(f"release: the version differs: {said}")
print(said["pyproject.toml"])
PROGRAM
)
echo "version $version"
# The newest section is that of the release, so that nothing is left under "Unreleased".
grep -m 1 "^## " CHANGELOG.md | grep -qF " $version" || {
  message="the first section of CHANGELOG.md is not that of $version"
  test $tag = no && echo "would stop: $message" || fail "$message"
}
changes=$(git status --porcelain)
test -z "$changes" || {
  message="the tree is not clean:"$'\n'"$changes"
  test $tag = no && echo "would stop: $message" || fail "$message"
}
git rev-parse -q --verify "refs/tags/v$version" >/dev/null && fail "the tag v$version is there already"

rm -rf dist
"$python" -m build --outdir dist . >/dev/null
"$python" -m twine check --strict dist/*
test ! -e build || fail "the build left build/ behind"
if test $tag = yes; then
  git tag -a "v$version" -m "opifex-multilevel $version"
  echo "tagged v$version; upload with: $python -m twine upload dist/*"
else
  echo "dry run: nothing tagged; packages are in dist/"
fi
