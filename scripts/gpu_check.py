"""Everything that only a GPU can show, in one command and one JSON file.

    python scripts/gpu_check.py --minutes 60 --crossbuilt crossbuilt-h200.tar --json scripts/results/gpu-check-h200.json
    python scripts/gpu_check.py --minutes 8 --only pixart-alpha --mode cache-all

On this machine's GPU, with synthetic weights: builds the recipes at the seeds' shapes and measures each against eager and
torch.compile (start-up, it/s, end to end, memory); records CUDA graphs; loads what scripts/crossbuilt.sh built on a host
without a GPU and compares outputs and pictures; flips bits in an artifact through the loader. Written after every step: a run
that is stopped keeps what it has. The exit code says whether everything that ran was right.
"""

import argparse
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

import aot
from aot.artifact.certificate import compare, tolerance
from aot.artifact.kinds import GRAPH
from aot.benchmark.bench import bench
from aot.benchmark.measurement import COMPARED, Measurement, Way
from aot.building.recorded import make_plan, prepare
from aot.cache_store.errors import Corrupt
from aot.cache_store.layer import verify
from aot.cache_store.local import LocalStore
from aot.cache_store.lock import Lock, Pin
from aot.cache_store.root import default_root
from aot.cache_store.store import read_manifest
from aot.environment import GRAPH_CACHE
from aot.machine.device import Device, is_here, properties_here, wait_for_device
from aot.machine.sku import SKUS
from aot.machine.target import Target
from aot.recipes import find
from aot.request.example import Example
from aot.request.options import Options
from aot.request.request import Request
from aot.request.shape import Shape
from aot.serving.nexfort import PIPELINE_COMPONENTS
from aot.shipping.listing import Row, listing

# recipe, size of the seeds' tables, components; in the order of what is worth most in little time
ROWS = (
    ("pixart-alpha", "1024x1024"),
    ("sd21", "768x768"),
    ("sdxl", "1024x1024"),
    ("sdxl-ip-adapter", "1024x1024"),
    ("latte", "512x512"),
)


class Check:
    """The file that is written, and the time that is left."""

    def __init__(self, file: Path, minutes: float) -> None:
        self._file, self._until = file, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {}
        self.failed: list[str] = []

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do it if there is time; what goes wrong is written down, and the next step begins."""
        if time.monotonic() > self._until:
            self.found[name] = {"skipped": "no time left"}
        else:
            print(f"== {name}", flush=True)
            started = time.perf_counter()
            try:
                self.found[name] = {"ok": True, **work()}
            except Exception as error:  # noqa: BLE001
                traceback.print_exc()
                self.found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            self.found[name]["seconds"] = round(time.perf_counter() - started, 1)
            if not self.found[name]["ok"]:
                self.failed.append(name)
        self._file.write_text(json.dumps(self.found, indent=1) + "\n")
        gc.collect()
        torch.cuda.empty_cache()  # the next step's processes need it


def machine() -> dict[str, Any]:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(asked, check=False, capture_output=True, text=True)
    (here, *_), target = properties_here(), Target.detect("cuda")
    row = next((sku for sku in SKUS.values() if sku.name == here["name"]), None)
    differs = row.differs(here) if row else None
    return {
        "target": str(target),
        "driver": driver.stdout.strip(),
        "cores": os.cpu_count(),
        "properties": here,
        "differs_from_row": differs,
    }


def request_for(recipe: str, shape: str, gpu: str, arguments: argparse.Namespace, mode: str) -> Request:
    options = Options.parse({"mode": mode, "memory_format": "channels_last"})
    request = Request(
        recipe,
        arguments.variant,
        (Shape.parse(shape),),
        gpu=gpu,
        options=options,
        dtype=arguments.dtype,
        cache_layer=False,
        untuned=arguments.untuned,
    )
    request.check(find(recipe))
    return request


def measured(request: Request, store: LocalStore, ways: tuple[Way, ...], rounds: int) -> dict[str, Any]:
    """The start-up ledger; its error is against eager, in the mode's own tolerance."""
    steps = find(request.recipe).variant(request.variant).steps
    ledger = bench(request, store, plan=Measurement(steps, rounds, ways), progress=print, environ=os.environ)
    found = ledger.to_json()
    allowed = tolerance(request.options.mode, request.dtype)
    return {**found, "ok": found["ratios"]["relative_l2_error"] <= allowed, "tolerance": allowed}


def crossbuilt(row: Row, store: LocalStore, gpu: str) -> dict[str, Any]:
    """An artifact that was built without this GPU: loaded, its calls and a whole picture compared with eager, and timed."""
    os.environ[GRAPH_CACHE] = str(store.root)
    recipe, key = find(row.ref.name), row.entry.key
    dtype = next(value for name, value in key.items() if name.endswith("/dtype"))
    components = tuple(name.split("/")[1] for name in key if name.endswith("/class"))
    options = Options.parse({"mode": key["mode"], "memory_format": key["memory_format"]})
    shapes = tuple(map(Shape.parse, key["shapes"].split()))
    request = Request(recipe.name, key["variant"], shapes, gpu=gpu, options=options, dtype=dtype, scope=key["scope"], components=components)
    pipeline, _ = prepare(recipe, request)
    plan = make_plan(recipe, request, pipeline=pipeline)
    pipeline.to(Device.of(gpu).name)
    calls = [(plan.modules[call.component], *call.signature.call(call.tensors)) for call in plan.calls]
    others = tuple(path for path in PIPELINE_COMPONENTS if path not in components)
    example = Example(shapes[0], frames=recipe.variant(key["variant"]).frames)

    def picture() -> Any:
        return pipeline(**recipe.call(pipeline, example, recipe.variant(key["variant"]).steps, 0))[0]

    with torch.inference_mode():
        eager, painted, eager_ms = [module(*args, **kwargs) for module, args, kwargs in calls], picture(), _steady(calls)
        try:
            started = time.perf_counter()
            aot.compile_pipe(pipeline, options=options, ignores=others, on_miss="error", allow=("other-sku",))
            loaded = time.perf_counter() - started
            served = [module(*args, **kwargs) for module, args, kwargs in calls]
            wait_for_device()
            first, served_ms, repainted = time.perf_counter() - started, _steady(calls), picture()
            account = aot.stats()[-1]
        finally:
            aot.restore(pipeline)
    worst = max(compare(ours, theirs).relative_l2 for ours, theirs in zip(served, eager, strict=True))
    allowed = tolerance(options.mode, dtype)
    return {
        "ok": worst <= allowed and not account["misses"],
        "producer": dict(row.entry.producer),
        "relative_l2": worst,
        "tolerance": allowed,
        "picture": compare(repainted, painted).to_json(),
        "load_s": loaded,
        "load_and_first_call_s": first,
        "steady_ms": {"eager": eager_ms, "artifact": served_ms},
        "account": account,
    }


def _steady(calls: list[Any], times: int = 20) -> float:
    """Milliseconds of all calls once, the median."""
    found = []
    for _ in range(times):
        wait_for_device()
        started = time.perf_counter()
        for module, args, kwargs in calls:
            module(*args, **kwargs)
        wait_for_device()
        found.append(1000 * (time.perf_counter() - started))
    return sorted(found)[times // 2]


def flipped(row: Row, store: LocalStore, times: int) -> dict[str, Any]:
    """Single bits of the graph layer flipped: the loader must refuse every one before anything is mapped."""
    layer = read_manifest(store, row.digest).layer(GRAPH)
    assert layer is not None
    chance, refused = random.Random(0), 0
    with store.open_blob(layer.digest) as blob:
        whole = bytearray(blob.read())
    with tempfile.TemporaryFile() as copy:
        for _ in range(times):
            place, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
            whole[place] ^= bit
            copy.seek(0)
            copy.write(whole)
            copy.seek(0)
            try:
                verify(layer, copy)
            except Corrupt:
                refused += 1
            whole[place] ^= bit
    return {"ok": refused == times, "flips": times, "refused": refused}


def check_crossbuilt(check: Check, tar: Path, gpu: str | None) -> None:
    folder = default_root(os.environ) / "crossbuilt"
    check.step("unpack", lambda: unpacked(tar, folder))
    if check.found["unpack"].get("artifacts"):
        store = LocalStore(folder)
        for row in listing(store):
            name = f"{row.ref.name} {row.part('scope')}"
            check.step(f"cross-built {name}", lambda row=row: crossbuilt(row, store, gpu or row.part("target.sku")))
            check.step(f"flipped bits {name}", lambda row=row: flipped(row, store, 100))


def unpacked(tar: Path, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    with tarfile.open(tar) as archive:
        archive.extractall(folder, filter="data")
    store, lock = LocalStore(folder), folder / "aot.lock"
    Lock(tuple(Pin(store.location, ref, digest) for ref, digest in store.refs())).write(lock)
    os.environ["AOT_LOCK"] = str(lock)  # what was just unpacked is to be run, whoever signed it
    return {"artifacts": [str(row.digest) for row in listing(store)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="no step begins after this")
    parser.add_argument("--only", action="append", choices=[name for name, _ in ROWS])
    parser.add_argument("--variant", default="full")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--mode", default="max-autotune:low-precision:cache-all")
    parser.add_argument("--untuned", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="eager,cold,jit-warm,artifact")
    parser.add_argument("--no-builds", action="store_true", help="only what was built elsewhere")
    parser.add_argument("--crossbuilt", type=Path, help="what scripts/crossbuilt.sh made")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.umask(0o077)  # a store that others may write is refused
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here; scripts/crossbuilt.sh is what a host without one can do")
    gpu = next((sku.alias for sku in SKUS.values() if is_here(sku.alias)), None)
    check = Check(arguments.json or Path(f"scripts/results/gpu-check-{gpu or 'unknown'}.json"), arguments.minutes)
    check.step("machine", machine)
    if arguments.crossbuilt:
        check_crossbuilt(check, arguments.crossbuilt, gpu)
    if arguments.no_builds:
        _end(check)
    if gpu is None:
        sys.exit("this GPU has no row in aot targets: no builds of its own")
    store, ways = LocalStore(default_root(os.environ)), tuple(Way(way) for way in arguments.ways.split(","))
    for recipe, shape in ROWS:
        if arguments.only and recipe not in arguments.only:
            continue
        request = request_for(recipe, shape, gpu, arguments, arguments.mode)
        check.step(f"{recipe} {shape}", lambda request=request: measured(request, store, ways, arguments.rounds))
        request = request_for(recipe, shape, gpu, arguments, f"{arguments.mode}:cudagraphs")
        check.step(f"{recipe} {shape} cudagraphs", lambda request=request: measured(request, store, COMPARED, arguments.rounds))
    _end(check)


def _end(check: Check) -> NoReturn:
    print(json.dumps({"failed": check.failed}))
    sys.exit(bool(check.failed))


if __name__ == "__main__":
    main()
