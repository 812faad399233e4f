"""Load the artifacts of a store, whatever torch built them, on this one: refused, then allowed, its canary sent, and compared with eager.

python scripts/other_torch.py FOLDER                   # one JSON line
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch

import aot
from aot.artifact.certificate import compare
from aot.building.recorded import make_plan, prepare
from aot.cache_store.local import LocalStore
from aot.environment import GRAPH_CACHE
from aot.errors import Miss
from aot.recipes import find
from aot.request.options import Options
from aot.request.request import Request
from aot.shipping.listing import listing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    os.environ[GRAPH_CACHE] = str(folder)
    (row,) = listing(LocalStore(folder))
    recipe = find(row.ref.name)
    shape = recipe.variant("tiny").shape
    request = Request(recipe.name, "tiny", (shape,), gpu="cpu", options=Options())
    pipeline, _ = prepare(recipe, request)
    plan = make_plan(recipe, request, pipeline=pipeline)
    calls = [(plan.modules[call.component], *call.signature.call(call.tensors)) for call in plan.calls]
    found = {"built by": row.part("target.torch"), "loaded by": torch.__version__, "refused": False}
    with torch.inference_mode():
        eager = [module(*args, **kwargs) for module, args, kwargs in calls]
        try:
            aot.compile_pipe(pipeline, on_miss="error")
        except Miss as error:
            found["refused"] = "target.torch" in str(error) and "other-torch" in str(error)
        aot.compile_pipe(pipeline, on_miss="error", allow=("other-torch",))
        served = [module(*args, **kwargs) for module, args, kwargs in calls]
        (account,) = aot.stats()
    found["canary_s"] = round(account["seconds"].get("canary", 0.0), 2)
    found["relative_l2"] = max(compare(ours, theirs).relative_l2 for ours, theirs in zip(served, eager, strict=True))
    found["hits"], found["misses"] = sum(account["hits"].values()), sum(account["misses"].values())
    same = torch.__version__.split("+")[0] == row.part("target.torch")
    found["ok"] = found["relative_l2"] <= 1e-5 and not found["misses"] and found["hits"] == len(calls) and found["refused"] != same
    print(json.dumps(found))
    sys.exit(not found["ok"])


if __name__ == "__main__":
    main()
