#!/usr/bin/env bash
# The tests that CI leaves out for their length: environments of other torches, cross-builds for every architecture.
set -euo pipefail
cd "$(dirname "$0")/.."
python -m pytest -q -m slow "$@"
