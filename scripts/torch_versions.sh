#!/usr/bin/env bash
# The main job, GPU-less builds and loading across versions, on several versions of torch; each in a fresh environment.
#
#     scripts/torch_versions.sh FOLDER [VERSION ...]        # default: 2.11.0 2.13.0 and the newest that is supported
#
# Needs uv and about 6 GB below FOLDER for each version; on two cores about half an hour each. Environments are kept in FOLDER.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")/.." && pwd)
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.11.0 2.13.0 newest)
tests=(tests/machine/test_target.py tests/model/test_capture.py tests/building/test_simulated.py tests/serving/test_load.py tests/serving/test_other_torch.py)
for version in "${versions[@]}"; do
  home=$folder/$version
  if [ ! -e "$home/complete" ]; then
    rm -rf "$home"
    uv venv --quiet "$home"
    if [ "$version" = newest ]; then torch="torch"; else torch="torch==$version"; fi
    uv pip install --quiet --python "$home/bin/python" "$torch" -e "$here[test]"
    touch "$home/complete"
  fi
  echo "== torch $("$home/bin/python" -c 'import torch; print(torch.__version__)'): tests"
  (cd "$here" && PATH="$home/bin:$PATH" "$home/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}")
  rm -rf "$folder/store-$version"
  (cd "$here" && AOT_HOME=$folder/store-$version "$home/bin/python" -m aot.cli.app build pixart-alpha --variant tiny --gpu cpu --no-cache-layer)
done
for version in "${versions[@]}"; do  # every version's artifact on every version
  for other in "${versions[@]}"; do
    echo "== built by $other, loaded by $version"
    (cd "$here" && "$folder/$version/bin/python" scripts/other_torch.py "$folder/store-$other")
  done
done
