"""Tiny pipelines whose denoiser is given to torch.compile(backend="aot"), each built from one call, served and compared with eager.

    python scripts/backend.py
    python scripts/backend.py --names flux --scope whole

Prints one line a pipeline and keeps the rows in scripts/results/backend-cpu.json: the error of the whole call against eager; what
Dynamo traced, what it traced again under the same calls (`recompiles`, which are refused there) and what Inductor compiled; calls that
graphs served, and missed; seconds of the first call by this door, by `compile_pipe` (loading included) and eagerly. Of regional scope are
those that diffusers' `compile_repeated_blocks` compiles.
"""

from __future__ import annotations

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

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.pipelines import PIPELINES, make

RESULTS = Path(__file__).with_name("results") / "backend-cpu.json"
OPTIONS = {"options": {"inductor.aot_inductor.compile_wrapper_opt_level": "O0"}}
ROWS = (("flux", "regional"), ("sdxl-refiner", "whole"), ("sd3", "whole"))  # a FLUX, a UNet, a DiT
STEPS = 3


def run(name: str, scope: str) -> dict[str, Any]:
    """Build, load by both doors and compare one pipeline, in this process."""
    import aot
    from aot.artifact.certificate import compare

    pipe, call = make(name)
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"

    def picture() -> tuple[Any, float]:
        started = time.perf_counter()
        with torch.no_grad():
            found = pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "latent"})[0]
        return found, time.perf_counter() - started

    aot.build(pipe, lambda _: picture()[0], gpu="cpu", scope=scope, components=(denoiser,), options=OPTIONS)
    _, first_eager = picture()
    expected, _ = picture()
    os.environ["NEXFORT_GRAPH_CACHE"] = "1"
    started = time.perf_counter()
    aot.compile_pipe(pipe, options=OPTIONS, on_miss="eager")
    picture()
    loaded = time.perf_counter() - started
    aot.restore(pipe)
    if scope == "regional":
        getattr(pipe, denoiser).compile_repeated_blocks(backend="aot", options=OPTIONS)
    else:
        setattr(pipe, denoiser, torch.compile(getattr(pipe, denoiser), backend="aot", options=OPTIONS))
    first, seconds = picture()
    counters = torch._dynamo.utils.counters
    traced, errors = counters["stats"]["unique_graphs"], [compare(first, expected).relative_l2]
    with torch.compiler.set_stance("fail_on_recompile"):
        errors += [compare(picture()[0], expected).relative_l2 for _ in range(STEPS)]
    (ledger,) = aot.stats()
    return {
        "relative_l2": max(errors),
        "traced": traced,
        "recompiles": counters["stats"]["unique_graphs"] - traced,
        "inductor": counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_hit"],
        "hits": sum(ledger["hits"].values()),
        "misses": ledger["misses"],
        "first_call_s": seconds,
        "compile_pipe_s": loaded,
        "eager_s": first_eager,
    }


def in_a_process(name: str, scope: str) -> dict[str, Any]:
    """As `run`, with a store of its own; the reason where it fails."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--names", name, "--scope", scope, "--here"]
        ran = subprocess.run(command, env={**os.environ, "AOT_HOME": home}, capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"error": f"exit code {ran.returncode}: {ran.stderr[-300:]}"}
    return {"pipeline": name, "scope": scope, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=PIPELINES)
    parser.add_argument("--scope", default="regional", choices=("regional", "whole"))
    parser.add_argument("--here", action="store_true", help="in this process, with the store that AOT_HOME names; prints JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(run(*given.names, given.scope)))
        return 0
    rows = []
    for name, scope in [(name, given.scope) for name in given.names] if given.names else ROWS:
        rows.append(in_a_process(name, scope))
        print(json.dumps(rows[-1]), flush=True)
    if not given.names:
        about = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
        RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return int(any(row.get("relative_l2", 1.0) > 1e-5 or row["misses"] or row["recompiles"] or row["inductor"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
