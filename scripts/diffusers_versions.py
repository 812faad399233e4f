"""Which artifacts outlive a release of diffusers: each recipe's denoiser built under one release and loaded under another.

    python scripts/diffusers_versions.py --json scripts/results/diffusers-versions.json
    python scripts/diffusers_versions.py --compile --build 0.39.0 --load 0.40.0 --recipe sd3

By default nothing is compiled: the model is exported as a build exports it, and what a load compares (class, config, fingerprint,
traced code, calls) is compared with the other release's. `--compile` is the real thing: an artifact, served and compared with
eager. Tiny variants on the CPU; `vae` is PixArt-alpha's decoder.

Each release is in a folder of its own below `--folder`, where it stays, and every cell in processes of its own, one at a time; the
interpreter and all other packages are those that run this. Needs uv (the test extra). Exits 1 when a cell failed: a miss is an answer.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from importlib.metadata import version
from itertools import pairwise, product
from multiprocessing import get_context
from operator import itemgetter, or_
from pathlib import Path
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from packaging.version import Version

import aot
from aot.artifact.certificate import compare
from aot.artifact.facts import of_module
from aot.building.build import build
from aot.building.plan import Plan, Unit
from aot.building.recorded import make_plan, prepare
from aot.cache_store.local import LocalStore
from aot.compiler.inductor import _WeightsAsInputs
from aot.environment import GRAPH_CACHE
from aot.model.capture import in_dtype
from aot.model.fingerprint import Fingerprint
from aot.model.signature import Signature
from aot.model.traced import TracedCode
from aot.model.tracing import tracing
from aot.model.twin import twin
from aot.model.weights import LiveWeights
from aot.recipes import find
from aot.request.options import Options
from aot.request.request import Request
from tests.shared import compile_quickly, quiet

RELEASES = ("0.36.0", "0.37.0", "0.37.1", "0.38.0", "0.39.0", "0.40.0", "0.41.0", "0.42.0", "0.42.1")
CASES = {
    "pixart-alpha": ("pixart-alpha", "transformer"),
    "latte": ("latte", "transformer"),
    "sd21": ("sd21", "unet"),
    "sdxl": ("sdxl", "unet"),
    "sd3": ("sd3", "transformer"),
    "vae": ("pixart-alpha", "vae.decoder"),
}
PAIRS = {"neighbours": pairwise, "same": lambda found: zip(found, found, strict=True), "all": partial(product, repeat=2)}
_CHECK = """
from importlib.metadata import version
from diffusers import LattePipeline, PixArtAlphaPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline, __version__
print(__version__, version("diffusers"))
"""
_HTTPX_UNTIL = "0.41"  # before this release diffusers imports httpx, which huggingface_hub 2 no longer brings
COMPARED = ("class", "config", "dtype")  # of a component's facts; its source is not, its fingerprint more closely

identity = itemgetter("how", "built", "loaded", "recipe")  # of a cell
Answer: TypeAlias = dict[str, Any]


class Failed(Exception): ...


def request_of(case: str) -> Request:
    name, component = CASES[case]
    shape = find(name).variant("tiny").shape
    return Request(name, "tiny", (shape,), gpu="cpu", options=Options(), components=(component,), cache_layer=False)


def trace(case: str, folder: Path) -> Answer:
    """Write down what a book would have of the component, and the part of its key that a load compares."""
    plan = make_plan(find(CASES[case][0]), request_of(case))
    (module,), (fingerprint,) = plan.modules.values(), plan.fingerprints.values()
    facts = of_module(module, fingerprint, Options())
    code = reduce(or_, (exported(plan, unit) for unit in plan.units))
    found = {"facts": {name: facts[name] for name in COMPARED}, "fingerprint": fingerprint.to_json(), "code": code.to_json()}
    found["calls"] = [unit.signature.to_json() for unit in plan.units]
    (folder / "traced.json").write_text(json.dumps(found))
    return {"functions": len(code.functions)}


def exported(plan: Plan, unit: Unit) -> TracedCode:
    """The code of one unit, exported as `compile_graph` exports it."""
    module = plan.kinds[unit.kind].module
    with in_dtype(module, unit.dtype), torch.no_grad():
        weights = LiveWeights(module)
        wrapped = _WeightsAsInputs(twin(module), weights.names, unit.signature)
        with tracing() as codes:
            torch.export.export(wrapped, (weights.tensors(), unit.signature.zeros()), strict=False)
        return TracedCode.of(codes, module)


def differs(case: str, folder: Path) -> Answer:
    """Compare what was written down with the component as it is here, in a load's order, before anything of it has run."""
    recipe, request = find(CASES[case][0]), request_of(case)
    built = json.loads((folder / "traced.json").read_text())
    _, modules = prepare(recipe, request)
    (module,) = modules.values()
    live = Fingerprint.of(module)
    facts = of_module(module, live, Options())
    reasons = {
        "fingerprint": Fingerprint.from_json(built["fingerprint"]).differs(live),
        **{name: f"{name} is another" for name in COMPARED if facts[name] != built["facts"][name]},
        "code": TracedCode.from_json(built["code"]).differs(module),
        "calls": calls_differ(built["calls"], make_plan(recipe, request)),
    }
    said = {name: why for name, why in reasons.items() if why}
    return {"served": not said, "why": next(iter(said.values()), ""), "differs": list(said)}


def calls_differ(built: list[Any], plan: Plan) -> str | None:
    """What of this release's calls no graph would serve."""
    live = [unit.signature for unit in plan.units]
    if len(built) != len(live):
        return f"{len(live)} signatures, built were {len(built)}"
    return next((why for before, now in zip(built, live, strict=True) if (why := Signature.from_json(before).differs(now))), None)


def make(case: str, folder: Path) -> Answer:
    """Build the artifact into a store in `folder`."""
    compile_quickly(os.environ)
    store = LocalStore(folder / "store")
    built = build(request_of(case), store, progress=quiet, environ=os.environ)
    return {"digest": str(built.digest), "diffusers": built.manifest.key["target.diffusers"]}


def load(case: str, folder: Path) -> Answer:
    """Serve every call of the plan, from the artifact where it may, and compare with eager."""
    os.environ[GRAPH_CACHE] = os.environ["AOT_HOME"] = str(folder / "store")
    plan = make_plan(find(CASES[case][0]), request_of(case))
    (module,) = plan.modules.values()
    calls = [call.signature.call(call.tensors) for call in plan.calls]
    with torch.inference_mode():
        eager = [module(*args, **kwargs) for args, kwargs in calls]
        aot.compile(module, on_miss="eager")
        served = [module(*args, **kwargs) for args, kwargs in calls]
    (account,) = aot.stats()
    worst = max(compare(ours, theirs).relative_l2 for ours, theirs in zip(served, eager, strict=True))
    hits, misses = sum(account["hits"].values()), account["misses"]
    return {"served": hits == len(calls) and not misses, "why": next(iter(misses), ""), "hits": hits, "relative_l2": worst}


TASKS: dict[str, Callable[[str, Path], Answer]] = {task.__name__: task for task in (trace, differs, make, load)}


def child(task: str, folder: Path, cases: list[str]) -> None:
    """Each case in a fork of its own, which has imported what every pipeline imports, and none of another's."""
    from diffusers import DiffusionPipeline  # noqa: F401

    for case in cases:
        fork = get_context("fork").Process(target=answer, args=(task, folder / case, case))
        fork.start()
        fork.join()


def answer(task: str, folder: Path, case: str) -> None:
    sys.stderr = (folder / f"{task}.log").open("w")
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    found = TASKS[task](case, folder)
    (folder / f"{task}.json").write_text(json.dumps(found))


def run(release: Path, *words: str) -> str:
    """What Python prints that has this release and is given these words. Raises Failed."""
    path = os.pathsep.join(filter(None, [str(release), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return done.stdout


def ask(task: str, release: Path, folder: Path, cases: list[str]) -> dict[str, Answer]:
    """By case the answer under this release; of a case that failed why."""
    for case in cases:
        (folder / case).mkdir(parents=True, exist_ok=True)
        (folder / case / f"{task}.json").unlink(missing_ok=True)
    run(release, __file__, "child", task, str(folder), *cases)
    found: dict[str, Answer] = {}
    for case in cases:
        file = folder / case / f"{task}.json"
        said = file.with_suffix(".log").read_text().strip().splitlines() or ["it was killed"]
        found[case] = json.loads(file.read_text()) if file.exists() else {"failed": said[-1]}
    return found


def installed(release: str, folder: Path) -> Path:
    """The folder of this release alone, made if it is not there. Raises Failed where it cannot be had or does not run here."""
    home = folder / f"diffusers-{release}"
    if not home.exists():
        begun = folder / f"{home.name}.begun"
        shutil.rmtree(begun, ignore_errors=True)
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--target", str(begun)]
        wanted = [f"diffusers=={release}", *(["httpx", "httpcore"] if Version(release) < Version(_HTTPX_UNTIL) else [])]
        done = subprocess.run([*command, *wanted], check=False, capture_output=True, text=True)
        if done.returncode:
            raise Failed(" ".join(done.stderr.split()))
        begun.rename(home)
    if (found := run(home, "-c", _CHECK).splitlines()[-1]) != f"{release} {release}":
        raise Failed(f"what is imported there says that it is {found}")
    return home


def usable(releases: Iterable[str], folder: Path) -> dict[str, Path]:
    """The releases that run here, in their order; of the others it is said why not."""
    found = {}
    for release in dict.fromkeys(releases):
        try:
            found[release] = installed(release, folder)
        except Failed as error:
            print(f"{release} is left out: {error}", file=sys.stderr)
    return found


def cells(asked: argparse.Namespace, homes: dict[str, Path], work: Path) -> Iterator[Answer]:
    """The cells of every pair; what was built under a release is built once."""
    pairs = [(asked.build, asked.load)] if asked.build else PAIRS[asked.pairs](list(homes))
    before, after = ("make", "load") if asked.compile else ("trace", "differs")
    how, cases, made = "compiled" if asked.compile else "traced", asked.recipe or list(CASES), dict[str, dict[str, Answer]]()
    for built, loaded in (pair for pair in pairs if homes.keys() >= set(pair)):
        folder, started = work / built, time.monotonic()
        if built not in made:
            made[built] = ask(before, homes[built], folder, cases)
        good = [case for case in cases if "failed" not in made[built][case]]
        found = ask(after, homes[loaded], folder, good)
        print(f"{built} -> {loaded}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        for case in cases:
            outcome = {"served": False, "why": "", **made[built][case], **found.get(case, {})}
            yield {"recipe": case, "built": built, "loaded": loaded, "how": how, **outcome}


def tell(rows: list[Answer]) -> None:
    """The table: a line a pair of releases, a column a recipe; below it the sentence of every miss."""
    columns = dict.fromkeys(row["recipe"] for row in rows)
    said = {identity(row)[1:]: "failed" if "failed" in row else "served" if row["served"] else "miss" for row in rows}
    print(f"{'built -> loaded':20}" + "".join(f"{name:>14}" for name in columns))
    for built, loaded in dict.fromkeys((row["built"], row["loaded"]) for row in rows):
        print(f"{f'{built} -> {loaded}':20}" + "".join(f"{said[built, loaded, name]:>14}" for name in columns))
    for row in rows:
        if not row["served"]:
            print(f"\n{row['built']} -> {row['loaded']} {row['recipe']}: {row.get('failed') or row['why']}")


def merged(rows: list[Answer], file: Path) -> Answer:
    """With the cells that the file has of other runs on the same versions: tracing and compiling are runs of their own."""
    machine = {"python": platform.python_version(), "torch": torch.__version__, "transformers": version("transformers")}
    before = json.loads(file.read_text()) if file.exists() else {}
    kept = {identity(row): row for row in before.get("cells", [])} if before.get("versions") == machine else {}
    command = " ".join(["python scripts/diffusers_versions.py", *sys.argv[1:]])
    found = {**kept, **{identity(row): {**row, "command": command} for row in rows}}
    return {"versions": machine, "cells": [found[key] for key in sorted(found)]}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="+", default=RELEASES)
    parser.add_argument("--pairs", choices=PAIRS, default="neighbours")
    parser.add_argument("--build", metavar="RELEASE", help="this release and that of --load alone")
    parser.add_argument("--load", metavar="RELEASE", help="default: that of --build")
    parser.add_argument("--recipe", action="append", choices=CASES, help="may be repeated; default: all")
    parser.add_argument("--compile", action="store_true", help="build artifacts and serve them, about a minute a cell")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / f"aot-diffusers-{os.getuid()}")
    parser.add_argument("--json", type=Path, help="cells of other runs that it has are kept")
    return parser.parse_args()


def main() -> int:
    asked = parsed()
    asked.folder.mkdir(parents=True, exist_ok=True)
    asked.load = asked.load or asked.build
    homes = usable([asked.build, asked.load] if asked.build else asked.releases, asked.folder)
    with tempfile.TemporaryDirectory(prefix="aot-diffusers-") as work:
        rows = list(cells(asked, homes, Path(work)))
    tell(rows)
    if asked.json:
        asked.json.write_text(json.dumps(merged(rows, asked.json), indent=1) + "\n")
    return int(not rows or any("failed" in row for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
