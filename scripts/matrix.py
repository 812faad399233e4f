"""The long matrix: every recipe, whole and regional, float32 and bfloat16, listed sizes and dynamic; built, loaded, compared.

    python scripts/matrix.py --variant tiny --json scripts/results/recipes-tiny.json
    python scripts/matrix.py --only sd3 --dtype bfloat16

Hours on a small machine: every line is a build. Lines that failed are printed again at the end; the exit code says whether there were any.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import aot
from aot.artifact.certificate import compare, tolerance
from aot.building.build import build
from aot.building.recorded import make_plan, prepare
from aot.cache_store.errors import CodedError
from aot.cache_store.local import LocalStore
from aot.cache_store.root import default_root
from aot.environment import GRAPH_CACHE
from aot.machine.target import Target
from aot.recipes import RECIPES
from aot.request.compilation import SCOPES
from aot.request.options import Options
from aot.request.request import DTYPES, Request


def lines(arguments: argparse.Namespace) -> Iterator[Request]:
    for name, scope, dtype, dynamic in product(arguments.only, arguments.scope, arguments.dtype, (False, True)):
        shape = RECIPES[name].variant(arguments.variant).shape
        options = Options.parse({"dynamic": dynamic})
        yield Request(name, arguments.variant, (shape,), gpu="cpu", options=options, dtype=dtype, scope=scope, cache_layer=False)


def run(request: Request, store: LocalStore) -> dict[str, Any]:
    """Build and load; every call of the plan, dynamic sizes included, served and compared with eager."""
    started = time.perf_counter()
    built = build(request, store, progress=lambda _: None, environ=os.environ)
    seconds = time.perf_counter() - started
    pipeline, _ = prepare(RECIPES[request.recipe], request)
    plan = make_plan(RECIPES[request.recipe], request, pipeline=pipeline)
    calls = [(plan.modules[call.component], *call.signature.call(call.tensors)) for call in plan.calls]
    with torch.inference_mode():
        eager = [module(*args, **kwargs) for module, args, kwargs in calls]
        aot.compile_pipe(pipeline, options=request.options, on_miss="error")
        served = [module(*args, **kwargs) for module, args, kwargs in calls]
        misses = aot.stats()[0]["misses"]
        aot.restore(pipeline)
    worst = max(compare(ours, expected).relative_l2 for ours, expected in zip(served, eager, strict=True))
    allowed = tolerance(request.options.mode, request.dtype)
    good = worst <= allowed and not misses
    return {"ok": good, "build_s": round(seconds, 1), "calls": len(calls), "worst_relative_l2": worst, "size": built.manifest.size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--only", action="append", choices=list(RECIPES))
    parser.add_argument("--scope", action="append", choices=SCOPES)
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.only, arguments.scope = arguments.only or list(RECIPES), arguments.scope or list(SCOPES)
    arguments.dtype = arguments.dtype or ["float32", "bfloat16"]
    store = LocalStore(default_root(os.environ))
    os.environ[GRAPH_CACHE] = str(store.root)
    found, failed = {}, []
    for request in lines(arguments):
        name = " ".join([request.recipe, request.scope, request.dtype, "dynamic" if request.options.dynamic else str(request.shapes[0])])
        try:
            found[name] = run(request, store)
        except CodedError as error:
            found[name] = {"ok": False, "error": str(error)}
        print(name, found[name], flush=True)
        failed += [] if found[name]["ok"] else [name]
    if arguments.json:
        arguments.json.write_text(json.dumps({"target": str(Target.detect("cpu")), "lines": found}, indent=1) + "\n")
    print(f"{len(found) - len(failed)} of {len(found)} good", *failed, sep="\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
