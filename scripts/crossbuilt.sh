#!/usr/bin/env bash
# Build, on a host without a GPU, the artifacts that scripts/gpu_check.py loads on a machine that has it.
#
#     scripts/crossbuilt.sh h200 2.13.0 crossbuilt-h200.tar [whole|regional ...]
#
# For the torch of that machine; its Python version does not matter, diffusers must be the same (0.42.1 here by default).
# The tar holds a store: its folder v1 alone, without the environments that were built in.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
gpu=$1 torch=$2 tar=$3
shift 3
umask 077
home=${AOT_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/aot}
mkdir -p "$home/environments"
home=$(cd "$home" && pwd)
export AOT_HOME="$home/crossbuilt-$gpu-$torch"
rm -rf "$AOT_HOME/v1" # what travels is this run's
mkdir -p "$AOT_HOME"
# environments are kept beside the user's own store, where `aot build --torch` looks for them too
ln -sfn "$home/environments" "$AOT_HOME/environments"
for scope in "${@:-whole regional}"; do
  for one in $scope; do
    aot build pixart-alpha --gpu "$gpu" --torch "$torch" --dtype bfloat16 --components transformer --scope "$one" --json
  done
done
tar -C "$AOT_HOME" -cf "$tar" v1
ls -l "$tar" >&2
