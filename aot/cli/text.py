"""Texts for people: sizes, ages, tables, the line that says what is being done."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aot.building.build import Progress
    from aot.cache_store.manifest import Manifest


def size(count: float) -> str:
    """Bytes, in the largest binary unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def found_cubins(manifest: Manifest) -> dict[str, int]:
    """The machine code in an artifact by GPU architecture, as its build read it from the code itself."""
    total: Counter[str] = Counter()
    for found in manifest.measured.get("cubins", {}).values():
        total.update(found)
    return dict(sorted(total.items()))


def age(created: str, now: datetime) -> str:
    """How long ago an RFC 3339 time was, in its largest unit."""
    seconds = (now - datetime.fromisoformat(created)).total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def now() -> datetime:
    return datetime.now(UTC)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; one row a line and tab-separated when that is not a terminal, so that it can be piped."""
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:  # what is typed into the next command must not be cut to the terminal's width
        table.add_column(column, no_wrap=column in ("recipe", "key", "digest"))
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_records(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows too wide for a table: on a terminal a block each, its first column as the title; else as `print_table` does."""
    if not sys.stdout.isatty():
        print_table(columns, rows)
        return
    width = max(map(len, columns[1:])) + 2
    for title, *values in rows:
        print(title)
        for column, value in zip(columns[1:], values, strict=True):
            print(f"  {column:<{width}}{value}")


@contextmanager
def progress() -> Iterator[Progress]:
    """A function that shows what is being done, and for how long, on stderr: a live line on a terminal, else a line a step."""
    from rich.console import Console

    console, last = Console(stderr=True, highlight=False), _Step()
    if not console.is_terminal:
        yield lambda what: last.begin(what, lambda line: console.print(line, markup=False))
        last.end(lambda line: console.print(line, markup=False))
        return
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    with Bar(SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console) as bar:

        def show(what: str) -> None:
            for task in bar.tasks:
                bar.stop_task(task.id)
                bar.update(task.id, total=1, completed=1)
            bar.add_task(what, total=None)

        yield show
        for task in bar.tasks:
            bar.stop_task(task.id)


@contextmanager
def transfer_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes as they move: a bar on a terminal's stderr, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


class _Step:
    """The step under way, for a log that is read afterwards: each step's time is printed when the next begins."""

    def __init__(self) -> None:
        self._what, self._started = "", time.monotonic()

    def begin(self, what: str, write: Any) -> None:
        self.end(write)
        self._what, self._started = what, time.monotonic()
        write(f"… {what}")

    def end(self, write: Any) -> None:
        if self._what:
            write(f"  {self._what}: {time.monotonic() - self._started:.1f} s")
        self._what = ""
