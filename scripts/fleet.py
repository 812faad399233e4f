"""A matrix of tiny cells built on a local Ray cluster of four nodes and on this machine alone, against the ideal of its cores; and how
long a plan of ten thousand cells takes.

    python scripts/fleet.py [--cells 24] [--json FILE]

A cell is PixArt-alpha `tiny`'s text encoder at a size of its own, one processor each. Each engine begins with an empty store, keys known.
The ideal is the time of one cell, all processors being busy with such cells, times their number by that of processors. The scheduling
overhead is what processors were without a cell, by cell. The plan's keys are known too, as they are after the first plan.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from aot.cache_store.local import LocalStore
from aot.fleet.drive import drive, task_of
from aot.fleet.engine import Engine, Here
from aot.fleet.keys import Keys, Known
from aot.fleet.matrix import Cell, Matrix
from aot.fleet.on_ray import OnRay
from aot.fleet.state import State, states
from aot.fleet.work import work
from aot.machine.sku import SKUS

MEMORY = 1 << 28  # bytes: of a cell; a node has what it has
PLANNED = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    processors = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {"processors": processors, "processor": platform.processor() or platform.machine(), "cells": asked.cells}
    found["plan_of_10000_s"] = planned()
    cells = [_cell(f"{16 * (4 + place)}x64") for place in range(asked.cells)]
    with own_home():
        found["alone_s"] = round(work(task_of(_cell("48x48"), "")).seconds, 2)
    each = together([_cell(f"{16 * (40 + place)}x64") for place in range(2 * processors)], processors)
    found["busy_s"] = round(statistics.mean(each), 2)
    ideal = found["busy_s"] * asked.cells / processors
    with own_home() as home:
        found["local"] = measured(cells, Here(), home, ideal, processors)
    with own_home() as home, cluster(processors) as address:
        engine = OnRay(address)
        engine.check(cells)
        found["ray"] = measured(cells, engine, home, ideal, processors)
    print(json.dumps(found, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


def _cell(size: str) -> Cell:
    options = ("--variant", "tiny", "--components", "text_encoder", "--no-cache-layer")
    return Cell("pixart-alpha", "cpu", sizes=(size,), options=options, memory=MEMORY)


def measured(cells: list[Cell], engine: Engine, home: Path, ideal: float, processors: int) -> dict[str, float]:
    """Build them all. Raises SystemExit where one fails."""
    started = time.perf_counter()
    outcome = drive([State(cell, Known(None)) for cell in cells], engine, store="", root=home)
    wall = time.perf_counter() - started
    if outcome.failed:
        raise SystemExit(f"{len(outcome.failed)} cells failed: {outcome.failed[0].said}")
    if len(list(LocalStore(home).refs())) != len(cells):
        raise SystemExit("not every cell is in the store.")
    seconds = [row.seconds for row in outcome.rows]
    return {
        "wall_s": round(wall, 1),
        "of_ideal": round(wall / ideal, 3),
        "cell_s": round(statistics.mean(seconds), 2),
        "overhead_s_a_cell": round((wall * processors - sum(seconds)) / len(cells), 3),
    }


def together(cells: list[Cell], at_once: int) -> list[float]:
    """The seconds of each, so many running at once without any engine."""
    with own_home(), ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(lambda cell: work(task_of(cell, "")), cells))
    if failed := [row for row in rows if row.status]:
        raise SystemExit(failed[0].said)
    return [row.seconds for row in rows]


def planned() -> float:
    """Seconds from reading a file of ten thousand cells to their states against a store of as many artifacts. The key of every group
    is that of the first one, under another mode: what finding one takes is not counted."""
    with own_home() as home:
        sizes = [f"{16 * (4 + place)}x64" for place in range(-(-PLANNED // (4 * len(SKUS))))]
        text = f"gpus = {json.dumps([*SKUS])}\n" + "\n".join(
            f'[[model]]\nwhat = "pixart-alpha"\nvariant = "tiny"\ncomponents = "text_encoder"\nshapes = {json.dumps(sizes)}\n'
            f'option = ["inductor.coordinate_descent_search_radius={place}"]'
            for place in range(4)
        )
        file = home / "many.toml"
        file.write_text(text)
        first = Matrix.read(file).cells[0]
        keys = Keys(home, os.environ)
        known = keys.of([first])[0]
        if known.key is None:
            raise SystemExit(known.why)
        for cell in Matrix.read(file).cells:
            kept = {"key": {**known.key.parts, "shapes": str(cell)}, "graphs": known.graphs}
            (home / "plans" / f"{keys._group(cell, simulated=True)}.json").write_text(json.dumps(kept))
        started = time.perf_counter()
        cells = Matrix.read(file).cells
        found = states(cells, Keys(home, os.environ).of(cells), LocalStore(home).entries())
        seconds = time.perf_counter() - started
        if len(found) < PLANNED or not all(state.to_build for state in found):
            raise SystemExit(f"{len(found)} cells were planned.")
        return round(seconds, 2)


@contextmanager
def own_home() -> Iterator[Path]:
    """A machine with an empty store."""
    with tempfile.TemporaryDirectory(prefix="aot-fleet-") as folder, mock.patch.dict(os.environ, AOT_HOME=folder):
        yield Path(folder)


@contextmanager
def cluster(processors: int, nodes: int = 4) -> Iterator[str]:
    """Four nodes, which have this machine's processors among them."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        counts = [processors // nodes + (place < processors % nodes) for place in range(nodes)]
        room = {"memory": 8 << 30, "object_store_memory": 80 << 20}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": counts[0], "include_dashboard": False, **room})
        try:
            for count in counts[1:]:
                found.add_node(num_cpus=count, **room)
            found.wait_for_nodes()
            yield found.address
        finally:
            ray.shutdown()
            found.shutdown()


if __name__ == "__main__":
    main()
