#!/usr/bin/env bash
# Every fault test in full: the numbers of SECURITY.md. Hours on two cores; run inside an environment with `pip install -e '.[test]'`.
#
#     scripts/faults.sh [folder for the results]
#
# faults.txt: kills, errors and floods against the store and its transfers. corruption.json: single faults in what compiled code
# is loaded from, through aot and through torch alone. transport.json: what carrying and checking artifacts costs.
set -euo pipefail
cd "$(dirname "$0")/.."
results=${1:-scripts/results}
mkdir -p "$results"
AOT_FAULTS=full python -m pytest -q -s tests/test_faults.py tests/test_hub.py tests/test_trust.py | grep -E '^(faults: |[0-9]+ passed|FAILED|ERROR)|failed' | tee "$results/faults.txt"
python scripts/corruption.py --faults 1720 --json "$results/corruption.json"
python scripts/transport.py --json "$results/transport.json"
