"""Engine: what runs tasks: this machine (here), Ray (`on_ray`), or jobs of the Hub (`on_jobs`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import ClassVar, Protocol

from aot.fleet.matrix import Cell
from aot.fleet.work import Row, Task, attempt, end_children


class Engine(Protocol):
    """Runs tasks, as many at once as there is room for. `away`: on machines that may have other GPUs than this one, or none."""

    away: ClassVar[bool]

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises BadInput or BadEnvironment for what it could never run, before anything is begun."""
        ...

    def run(self, work: Sequence[tuple[Cell, Task]], begun: Callable[[str], None]) -> Iterator[Row]:
        """The row of each as it is done; `begun` hears their names when they begin. Ends what runs when it is closed."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """This machine: as many cells at once as its processors have room for, or `jobs`."""

    jobs: int = 0
    away: ClassVar[bool] = False

    def check(self, cells: Sequence[Cell]) -> None:
        """Everything may be tried here; what lacks its GPU says so by itself."""

    def run(self, tasks: Sequence[tuple[Cell, Task]], begun: Callable[[str], None]) -> Iterator[Row]:
        """One thread a cell waits for its processes. The first to have room is the first of the file."""
        processors = len(os.sched_getaffinity(0))
        waiting, running = list(tasks), dict[Future[Row], tuple[Cell, Task]]()
        with ThreadPoolExecutor(max_workers=self.jobs or processors) as pool:
            try:
                while waiting or running:
                    while waiting and self._has_room(waiting[0][0], [cell for cell, _ in running.values()], processors):
                        cell, task = waiting.pop(0)
                        begun(task.name)
                        running[pool.submit(attempt, task)] = cell, task
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        running.pop(done)
                        yield done.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                end_children()

    def _has_room(self, cell: Cell, running: list[Cell], processors: int) -> bool:
        if self.jobs:
            return len(running) < self.jobs
        return not running or sum(max(one.cpus, 1) for one in running) + max(cell.cpus, 1) <= processors
