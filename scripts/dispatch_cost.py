"""What a loaded call costs over the graph itself: everything the dispatcher does, with a graph that computes nothing.

    aot build pixart-alpha --variant small --gpu cpu && python scripts/dispatch_cost.py --variant small

Prints one JSON object: microseconds a call (median of rounds), of which reading the live weights, and how many weights there are.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch

import aot
from aot.building.plan import make_plan
from aot.recipes import find
from aot.request.options import Options
from aot.request.request import Request


def per_call(function: Callable[[], object], *, rounds: int = 30, calls: int = 300) -> float:
    """Microseconds, the median of the rounds' means."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="small")
    variant = parser.parse_args().variant
    os.environ.setdefault("NEXFORT_GRAPH_CACHE", "1")

    recipe = find("pixart-alpha")
    plan = make_plan(recipe, Request(recipe.name, variant, (recipe.variant(variant).shape,), "cpu", Options()))
    aot.compile_pipe(plan.pipeline, on_miss="error")
    call = next(call for call in plan.calls if call.component == "transformer")
    dispatcher = plan.modules["transformer"].forward
    args, kwargs = call.signature.call(call.tensors)
    with torch.no_grad():
        dispatcher(*args, **kwargs)
        ((graph, _),) = dispatcher._known.values()
        outputs = graph.run_flat([*dispatcher._weights.tensors(), *call.tensors])
        graph.run_flat = lambda _: outputs
        result = {
            "dispatch_us": per_call(lambda: dispatcher(*args, **kwargs)),
            "of_it_weights_us": per_call(dispatcher._weights.tensors),
            "weights": len(dispatcher._weights.names),
            "torch": torch.__version__,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
