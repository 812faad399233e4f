#!/usr/bin/env bash
# Everything that must hold before a commit: style, types, layers, tests. Run inside an environment with `pip install -e '.[test]'`.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
lint-imports
python -m pytest -q -m "not slow" "$@"
