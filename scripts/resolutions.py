"""Serve a recipe's whole list of sizes from one artifact, count what was compiled, and compare every size with eager.

    python scripts/resolutions.py sdxl --variant small --json scripts/results/sdxl-small-resolutions.json

Builds the dynamic artifact first, unless the local store has it.
"""

import argparse
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

import aot
from aot.artifact.certificate import compare
from aot.building.build import build
from aot.building.recorded import prepare
from aot.cache_store.local import LocalStore
from aot.cache_store.root import default_root
from aot.environment import GRAPH_CACHE
from aot.machine.target import Target
from aot.recipes import find
from aot.request.example import Example
from aot.request.options import Options
from aot.request.request import Request


def serve(name: str, variant: str, steps: int) -> dict[str, Any]:
    recipe = find(name)
    row = recipe.variant(variant)
    options = Options.parse({"dynamic": True})
    request = Request(name, variant, recipe.seed_shapes, gpu="cpu", options=options, cache_layer=False)
    request.check(recipe)
    store = LocalStore(default_root(os.environ))
    built = build(request, store, progress=print, environ=os.environ)
    os.environ[GRAPH_CACHE] = str(store.root)

    (eager, _), (pipe, _) = prepare(recipe, request), prepare(recipe, request)
    started = time.perf_counter()
    aot.compile_pipe(pipe, options=options, on_miss="error")
    load, compiled, sizes = time.perf_counter() - started, counters["stats"]["unique_graphs"], []
    for shape in recipe.seed_shapes:
        call = [recipe.call(each, Example(shape, frames=row.frames), steps, 0) for each in (eager, pipe)]
        outputs, seconds = [], []
        for each, arguments in zip((eager, pipe), call, strict=True):
            started = time.perf_counter()
            outputs.append(each(**arguments)[0])
            seconds.append(time.perf_counter() - started)
        relative = compare(outputs[1], outputs[0]).relative_l2
        sizes.append({"shape": str(shape), "relative_l2": relative, "eager_s": seconds[0], "artifact_s": seconds[1]})
        print(f"{shape}: relative L2 {relative:.1e}, eager {seconds[0]:.2f} s, artifact {seconds[1]:.2f} s", flush=True)
    (ledger,) = aot.stats()
    return {
        "command": f"python scripts/resolutions.py {name} --variant {variant} --steps {steps}",
        "machine": {"target": str(Target.detect("cpu")), "cores": os.cpu_count(), "python": platform.python_version()},
        "artifact": {"digest": str(built.digest), "size": built.manifest.size, "compile_s": built.manifest.measured["compile_s"]},
        "load_s": load,
        "sizes": sizes,
        "graphs_compiled_after_load": counters["stats"]["unique_graphs"] - compiled,
        "misses": ledger["misses"],
        "hits": ledger["hits"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--variant", default="small")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s")
    with torch.inference_mode():
        found = serve(arguments.recipe, arguments.variant, arguments.steps)
    print(f"compiled after load: {found['graphs_compiled_after_load']}; misses: {found['misses'] or 'none'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
