#!/usr/bin/env bash
# Everything that must hold before a commit: style, types, layers, tests; with the seconds of each part.
# Run inside an environment with `pip install -e '.[test]'`.
set -euo pipefail
cd "$(dirname "$0")/.."
part() {
  local started=$SECONDS
  "$@"
  times+=("$(printf '%5d s  %s' $((SECONDS - started)) "${*:1:3}")")
}
times=()
part ruff check .
part ruff format --check .
part mypy
part lint-imports
# two processes: most tests are one thread's work. Those that share an artifact of their module are one process's, else each builds it
part python -m pytest -q -m "not slow" -n 2 --dist loadgroup --no-loadscope-reorder --durations 15 "$@"
printf '%s\n' "${times[@]}"
