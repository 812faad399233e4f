#!/usr/bin/env bash
# What CI leaves out for its length: the tests marked slow (environments of other torches, cross-builds for every architecture,
# the long commands of the pages), and the suite without compiling on the other Pythons that are supported, in environments of uv's.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -q -m slow "$@"
for version in 3.12 3.13; do
  environment=$(mktemp -d)
  uv venv --quiet --python "$version" "$environment"
  uv pip install --quiet --python "$environment/bin/python" -e '.[test]'
  echo "Python $version"
  "$environment/bin/python" -m pytest -q -m "not slow and not compiles" -n 2
  rm -rf "$environment"
done
