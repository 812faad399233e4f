"""A minimal PixArt-alpha server process: make the pipeline, compile it or load its artifact, serve requests, say what was used.

aot build pixart-alpha --variant small --gpu cpu --shape 256x256
NEXFORT_GRAPH_CACHE=1 python scripts/serve_pixart.py
"""

import argparse
import json
import logging
import time

import torch

import aot
from aot.recipes import find
from aot.request.example import Example
from aot.request.shape import Shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="small")
    parser.add_argument("--weights", help="folder or repository of real weights; default: seeded random ones")
    parser.add_argument("--options", default='{"mode": "O2"}', help="nexfort's compiler config, as JSON")
    parser.add_argument("--shape", action="append", default=[], help="HEIGHTxWIDTH of a request; may be repeated")
    parser.add_argument("--requests", type=int, default=2, help="how often each shape is asked for")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s")

    recipe = find("pixart-alpha")
    variant = recipe.variant(arguments.variant)
    torch.manual_seed(0)
    pipe = recipe.pipeline(variant, dtype="float32", weights=arguments.weights)

    started = time.perf_counter()
    pipe = aot.compile_pipe(pipe, options=arguments.options)
    print(f"compile_pipe: {time.perf_counter() - started:.3f} s")

    for shape in list(map(Shape.parse, arguments.shape)) or [variant.shape]:
        for number in range(arguments.requests):
            started = time.perf_counter()
            pipe(**recipe.call(pipe, Example(shape), arguments.steps, number))
            print(f"request {number + 1} at {shape}: {time.perf_counter() - started:.3f} s")
    print(json.dumps(aot.stats(), indent=2))


if __name__ == "__main__":
    main()
