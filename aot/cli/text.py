"""Texts for people: sizes, ages, tables, the lines that say what is being done."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.progress import TaskID

    from aot.cache_store.manifest import Manifest
    from aot.compiler.stage import Progress, Stage


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


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, file: TextIO | None = None) -> None:
    """A table on `file`, by default stdout; one row a line and tab-separated when that is not a terminal, so that it can be piped."""
    file = file or sys.stdout
    if not file.isatty():
        for row in [columns, *rows]:
            print("\t".join(row), file=file)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:  # what is typed into the next command must not be cut to the terminal's width
        table.add_column(column, no_wrap=column in ("recipe", "key", "digest"))
    for row in rows:
        table.add_row(*row)
    Console(file=file).print(table)


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


def end_as(status: int) -> None:
    """Where a program that was run for the user ended otherwise than well, say so and exit as it did."""
    if status:
        print(f"the program ended with status {status}", file=sys.stderr)
        raise typer.Exit(status if status > 0 else 128 - status)


@contextmanager
def progress() -> Iterator[Progress]:
    """A function to be told of stages: one line a finished one on stderr; on a terminal those under way too, and what they took before."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)

    def finished(stage: Stage) -> None:
        if stage.seconds is not None:
            console.print(str(stage), markup=False)

    if not console.is_terminal:
        yield finished
        return
    from rich.progress import Progress as Live
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), TextColumn("{task.fields[expected]}")
    with Live(*columns, console=console, transient=True) as live:
        under_way: dict[str, TaskID] = {}

        def show(stage: Stage) -> None:
            if stage.seconds is None:
                expected = "" if stage.expected is None else f"of about {stage.expected:.0f} s"
                under_way[stage.what] = live.add_task(stage.what, total=None, expected=expected)
            elif stage.what in under_way:
                live.remove_task(under_way.pop(stage.what))
            finished(stage)

        yield show


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
