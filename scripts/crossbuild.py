"""What building for a GPU that is absent costs: seconds, bytes, machine code, and whether the same build gives the same bytes again.

    python scripts/crossbuild.py --gpu h200 --json scripts/results/pixart-alpha-full-h200-crossbuilt.json

PixArt-alpha's denoiser as published, 1024x1024, bfloat16, whole and regional; each build in a store of its own, compilers' caches
empty, C++ headers precompiled by a first build that is not counted.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aot.machine.target import Target


def build(home: Path, arguments: argparse.Namespace, scope: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "aot.cli.app", "build", "pixart-alpha", "--gpu", arguments.gpu, "--dtype", "bfloat16"]
    command += ["--variant", arguments.variant, "--scope", scope, "--components", "transformer", "--json", *words]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "AOT_HOME": str(home)})
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


def graph_layer(home: Path, digest: str) -> str:
    manifest = json.loads((home / "v1" / "manifests" / digest.removeprefix("sha256:")).read_bytes())
    return next(layer["sha256"] for layer in manifest["layers"] if layer["kind"] == "graph")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", default="h200")
    parser.add_argument("--variant", default="full")
    parser.add_argument("--scope", action="append", choices=("whole", "regional"))
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    scopes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "first")
        warm = [sys.executable, "-m", "aot.cli.app", "build", "pixart-alpha", "--gpu", arguments.gpu, "--variant", "tiny"]
        subprocess.run([*warm, "--components", "text_encoder"], check=True, env={**os.environ, "AOT_HOME": str(first)})
        for scope in arguments.scope or ("regional", "whole"):
            runs, layers = [], set()
            for number in range(arguments.times):
                home = Path(folder, f"{scope}-{number}")
                home.mkdir(mode=0o700)
                runs.append(build(home, arguments, scope))
                layers.add(graph_layer(home, runs[-1]["digest"]))
                print(scope, runs[-1]["seconds"], "s", runs[-1]["layers"], runs[-1]["cubins"], flush=True)
            scopes[scope] = {
                "seconds": [run["seconds"] for run in runs],
                "compile_s": [run["measured"]["compile_s"] for run in runs],
                "graph_layer_bytes": runs[0]["layers"]["graph"],
                "cubins": runs[0]["cubins"],
                "same_bytes_again": len(layers) == 1 if arguments.times > 1 else None,
            }
    found = {
        "command": f"python scripts/crossbuild.py --gpu {arguments.gpu} --variant {arguments.variant} --times {arguments.times}",
        "target": str(Target.named(arguments.gpu)),
        "machine": {"cores": os.cpu_count(), "cpu": str(Target.named("cpu")), "python": platform.python_version()},
        "scopes": scopes,
    }
    print(json.dumps(found, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
