"""Many workers of one host starting at once from one local store: the processor time of each, against one that starts alone.

    python scripts/starts.py [--workers 64] [--json FILE]

Each worker is forked once everything is imported, as gunicorn's are with `preload`, loads PixArt-alpha `tiny` with one thread and serves
one call of its transformer; counted is its own processor time of that. Builds the artifact in a store of its own. What is loaded is
compared with eager in every worker.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import aot
from aot.artifact.certificate import compare
from aot.building.build import build
from aot.building.recorded import make_plan, prepare
from aot.cache_store.local import LocalStore
from aot.recipes import find
from aot.request.options import Options
from aot.request.request import Request


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    recipe = find("pixart-alpha")
    request = Request(recipe.name, "tiny", (recipe.variant("tiny").shape,), gpu="cpu", options=Options(), cache_layer=False)
    with tempfile.TemporaryDirectory(prefix="aot-starts-") as home:
        os.environ.update(AOT_HOME=home, NEXFORT_GRAPH_CACHE="1")
        build(request, LocalStore(Path(home)), progress=lambda _: None, environ=os.environ)
        pipeline, _ = prepare(recipe, request)
        plan = make_plan(recipe, request, pipeline=pipeline)
        call = next(call for call in plan.calls if call.component == "transformer")
        torch.set_num_threads(1)
        with torch.inference_mode():
            args, kwargs = call.signature.call(call.tensors)
            eager = pipeline.transformer(*args, **kwargs)[0]
            start(pipeline, args, kwargs, eager)  # what is imported at the first time is not what is counted
            aot.restore(pipeline)
            alone = [seconds for _ in range(5) for seconds in together(1, pipeline, args, kwargs, eager)]
            crowd = together(asked.workers, pipeline, args, kwargs, eager)
    found = {
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "workers": asked.workers,
        "alone_ms": round(1000 * statistics.median(alone), 1),
        "each_of_all_ms": round(1000 * statistics.median(crowd), 1),
        "slowest_ms": round(1000 * max(crowd), 1),
        "ratio": round(statistics.median(crowd) / statistics.median(alone), 3),
    }
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def start(pipeline: Any, args: Any, kwargs: Any, eager: torch.Tensor) -> float:
    """Load and serve: seconds of this process's processor time."""
    started = time.process_time()
    aot.compile_pipe(pipeline, on_miss="error")
    served = pipeline.transformer(*args, **kwargs)[0]
    seconds = time.process_time() - started
    if not compare([served], [eager]).relative_l2 <= 1e-5:
        raise SystemExit("a worker's result is not eager's.")
    return seconds


def together(count: int, *given: Any) -> list[float]:
    """What `start` takes in each of so many forks that are let go at once. Raises SystemExit when one fails."""
    gate, opener = os.pipe()
    reading, writing = os.pipe()
    children = []
    for _ in range(count):
        if not (pid := os.fork()):
            status = 1
            try:
                os.close(opener)
                os.read(gate, 1)  # until the parent closes the other end
                os.write(writing, f"{start(*given):.6f}\n".encode())
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    os.close(opener)
    os.close(writing)
    with os.fdopen(reading) as told:
        seconds = [float(line) for line in told]
    os.close(gate)
    if any(os.waitpid(pid, 0)[1] for pid in children) or len(seconds) != count:
        raise SystemExit("a worker failed.")
    return seconds


if __name__ == "__main__":
    main()
