"""Tiny pipelines of today, each built from one call of it, loaded, and compared with eager end to end.

    python scripts/pipelines.py                                # all of them, one after another, a fresh process each
    python scripts/pipelines.py --names wan flux --scope whole
    python scripts/pipelines.py --axes                         # recorded at three sizes, served at these and at one between

Prints one line a pipeline and keeps its row in scripts/results/pipelines-SCOPE[-axes]-cpu.json: the error of the whole call against
eager, what the build allowed a component (1e-5, or ten times eager's own distance from float64), calls served and missed, graphs,
the most graphs that a kind of module has of each component, and seconds. The wrapper of each graph is compiled without optimisation,
which changes how long a build takes and not what it computes.
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
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.pipelines import PIPELINES, make

Times: TypeAlias = tuple[int, int]  # as high and as wide
RESULTS = Path(__file__).with_name("results")
OPTIONS = {"options": {"inductor.aot_inductor.compile_wrapper_opt_level": "O0"}}
ONE: tuple[Times, ...] = ((1, 1),)
RECORDED: tuple[Times, ...] = ((1, 1), (3, 2), (2, 3))  # with --axes, of the maker's own height and width
BETWEEN: tuple[Times, ...] = ((2, 2),)


def run(name: str, scope: str, *, axes: bool) -> dict[str, Any]:
    """Build, load and compare one pipeline, in this process."""
    import aot
    from aot.artifact.certificate import compare

    pipe, call = make(name)

    def picture(pipe: Any, times: Times) -> Any:
        return pipe(**{**larger(call, times), "generator": torch.Generator().manual_seed(0), "output_type": "pt"})[0]

    sizes = RECORDED if axes else ONE
    served = sizes + BETWEEN if axes else ONE
    started = time.perf_counter()
    with aot.record(pipe) as record, torch.no_grad():
        for times in sizes:
            picture(pipe, times)
    recorded = time.perf_counter()
    built = aot.build(record, gpu="cpu", scope=scope, options=OPTIONS, axes=axes)
    compiled = time.perf_counter()
    with torch.no_grad():
        expected = [picture(pipe, times) for times in served]
    os.environ["NEXFORT_GRAPH_CACHE"] = "1"
    loading = time.perf_counter()
    aot.compile_pipe(pipe, options=OPTIONS, on_miss="eager")
    loaded = time.perf_counter()
    with torch.no_grad():
        found = [picture(pipe, times) for times in sizes]
        (ledger,) = aot.stats()
        found += [picture(pipe, times) for times in served[len(sizes) :]]
    (after,) = aot.stats()
    return {
        "relative_l2": max(compare(got, wanted).relative_l2 for got, wanted in zip(found, expected, strict=True)),
        "allowed": built.manifest.certificate["tolerance_relative_l2"],
        "hits": sum(ledger["hits"].values()),
        "misses": ledger["misses"],
        "missed_between": {why: many for why, many in after["misses"].items() if why not in ledger["misses"]},
        "left": record.left,
        "components": sorted(record.modules),
        "axes": axes,
        "graphs": len(built.manifest.measured["compile_s"]),
        "graphs_of_a_kind": graphs_of_a_kind(built),
        "apart": built.manifest.measured.get("apart", {}),
        "record_s": recorded - started,
        "build_s": compiled - recorded,
        "load_s": loaded - loading,
    }


def larger(call: dict[str, Any], times: Times) -> dict[str, Any]:
    """The call of a size that is so many times as high and as wide: what says it in numbers, and every image."""
    high, wide = times
    numbers = {"height": high, "width": wide, "max_area": high * wide}
    found = {name: value * numbers[name] if name in numbers else value for name, value in call.items()}
    for name, value in call.items():
        if "image" in name and isinstance(value, torch.Tensor):
            found[name] = value.repeat(1, 1, high, wide)
        elif hasattr(value, "getpixel"):  # a picture, or a mask
            found[name] = value.resize((value.width * wide, value.height * high))
    return found


def graphs_of_a_kind(built: Any) -> dict[str, int]:
    """Of each component, how many graphs the kind of module has that has most."""
    from aot.artifact.opened import read_book
    from aot.cache_store.trust import Admitted
    from aot.verbs.stores import local_store

    book = read_book(local_store(), Admitted(built.digest, built.manifest, "this build"))
    counts = Counter((entry.component, str(entry.kind)) for entry in book.graphs)
    return {component: max(many for (of, _), many in counts.items() if of == component) for component, _ in counts}


def verdict(row: dict[str, Any]) -> str:
    if "error" in row:
        return "failed"
    if row["misses"] or row["left"]:
        return "missed"
    return "served" if row["relative_l2"] <= row["allowed"] else "wrong"


def in_a_process(name: str, scope: str, *, axes: bool) -> dict[str, Any]:
    """As `run`, with a store of its own; the reason where it fails."""
    with tempfile.TemporaryDirectory() as home:
        ran = subprocess.run(
            [sys.executable, __file__, "--names", name, "--scope", scope, "--here", *(["--axes"] if axes else [])],
            env={**os.environ, "AOT_HOME": home},
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"error": f"exit code {ran.returncode}: {ran.stderr[-300:]}"}
    return {"pipeline": name, "verdict": verdict(found), **found}


def line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['pipeline']:<16} failed: {row['error'][:400]}"
    times = "  ".join(f"{what} {row[f'{what}_s']:.1f} s" for what in ("record", "build", "load"))
    between = [f"between: {sentence}" for sentence in row["missed_between"]]
    why = "".join(f"\n{'':17}{sentence}" for sentence in [*row["misses"], *row["left"].values(), *between])
    graphs = f"{row['graphs']} graphs" + (f" (of a kind: {row['graphs_of_a_kind']})" if row["axes"] else "")
    return f"{row['pipeline']:<16} {row['verdict']:<7} {row['relative_l2']:.1e}  {row['hits']} hits  {graphs}  {times}{why}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--scope", default="regional", choices=("regional", "whole"))
    parser.add_argument("--axes", action="store_true", help="one build of three sizes, what differs left open")
    parser.add_argument("--here", action="store_true", help="in this process, with the store that AOT_HOME names; prints JSON")
    given = parser.parse_args()
    if given.here:
        torch.set_num_threads(1)
        try:
            found = run(*given.names, given.scope, axes=given.axes)
        except Exception as error:  # noqa: BLE001 - what fails is a row of the table
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found))
        return 0
    rows = [report(name, given.scope, axes=given.axes) for name in given.names]
    file = RESULTS / f"pipelines-{given.scope}{'-axes' * given.axes}-cpu.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    known = {row["pipeline"]: row for row in (*before, *rows)}
    about = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    file.write_text(json.dumps({**about, "rows": [known[name] for name in PIPELINES if name in known]}, indent=1) + "\n")
    return int(any(row["verdict"] != "served" for row in rows))


def report(name: str, scope: str, *, axes: bool) -> dict[str, Any]:
    row = in_a_process(name, scope, axes=axes)
    print(line(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
