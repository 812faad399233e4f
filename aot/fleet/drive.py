"""Drive: build what a matrix lacks, go on when a cell fails, and write down what became of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aot.fleet.engine import Engine
from aot.fleet.matrix import Cell
from aot.fleet.state import State
from aot.fleet.work import NO_GPU, Row, Task
from aot.machine.sku import find_sku

JOURNAL = "matrix.jsonl"  # in the store's root: a row for every cell that was tried
_KEPT = 20_000  # rows


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the rows in the order in which they were done, and the cells that were there before."""

    rows: tuple[Row, ...]
    present: int

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.status)


def drive(
    states: Sequence[State],
    engine: Engine,
    *,
    store: str,
    root: Path,
    begun: Callable[[str], None] = lambda _: None,
    done: Callable[[Row], None] = lambda _: None,
) -> Outcome:
    """Build the cells that are to be built. Finished ones are in the store at once, so whoever is killed here loses none of them,
    and a rerun builds what is missing. Raises what `engine.check` raises."""
    missing = [state for state in states if state.to_build]
    engine.check([state.cell for state in missing])
    rows: list[Row] = []
    with closing(_rows(engine, [(state.cell, task_of(state.cell, store, away=engine.away)) for state in missing], begun)) as found:
        for row in found:
            rows.append(row)
            note(root, row)
            done(row)
    return Outcome(tuple(rows), len(states) - len(missing))


def _rows(engine: Engine, tasks: Sequence[tuple[Cell, Task]], begun: Callable[[str], None]) -> Generator[Row]:
    yield from engine.run(tasks, begun)


def task_of(cell: Cell, store: str, *, away: bool = False) -> Task:
    """Where it runs `away`, what needs no GPU sees none: every machine makes the same of it."""
    device = find_sku(cell.gpu).name if cell.on_gpu else ""
    hidden = NO_GPU if away and not cell.on_gpu else {}
    words = [str(Path(word).absolute()) if word in cell.paths() else word for word in cell.arguments()]
    return Task(str(cell), tuple(words), max(cell.cpus, 1), store, device, hidden)


def note(root: Path, row: Row) -> None:
    """Add a row to the journal, in one write: several drivers may have one root."""
    told = {"time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), **row.to_json()}
    with (root / JOURNAL).open("a") as file:
        file.write(json.dumps(told) + "\n")


def journal(root: Path) -> list[dict[str, Any]]:
    """What was noted, oldest first; a line that was cut short is left out."""
    found: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), (root / JOURNAL).open() as file:
        for line in file:
            with suppress(ValueError):
                found.append(json.loads(line))
    return found[-_KEPT:]
