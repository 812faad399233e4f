"""`aot matrix plan`, `aot matrix build`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from aot.choice import choice
from aot.cli.app import PLAIN
from aot.cli.request import Json
from aot.cli.text import print_json, print_table, size
from aot.errors import INCOMPLETE, INTERRUPTED

if TYPE_CHECKING:
    from rich.progress import TaskID

    from aot.fleet.engine import Engine
    from aot.fleet.matrix import Matrix
    from aot.fleet.state import State
    from aot.fleet.work import Row

ENGINES = ("local", "ray")

matrix = typer.Typer(
    help="Many builds from one file: models by GPUs, torch versions, modes and sizes.",
    no_args_is_help=True,
    epilog="""A file: gpus = ["h200", "rtx-4090"], store = "hf://me/compiled", and below it for each model [[model]],
what = "pixart-alpha", shapes = ["1024x1024"], and any option of `aot build` by its name.""",
    **PLAIN,
)

File: TypeAlias = Annotated[Path, typer.Argument(help="The matrix, a TOML file.", metavar="FILE")]
Store: TypeAlias = Annotated[str, typer.Option("--store", help="Where artifacts go. Default: the file's, else this machine's own store.")]
Shard: TypeAlias = Annotated[str, typer.Option("--shard", help="Only every N-th cell from the I-th on: one of N runners.", metavar="I/N")]


@matrix.command("plan")
def plan(file: File, store: Store = "", shard: Shard = "", json: Json = False) -> None:
    """Tell what the store has of a matrix, what is to build and why, and what that will take. Nothing is built."""
    found = _read(file, store, shard)
    states = _states(found)
    if json:
        print_json({"store": found.store, "cells": [state.to_json() for state in states]})
        return
    print_table(("cell", "state", "expected", "memory", "why"), [_cells(state) for state in states])
    missing = [state for state in states if state.to_build]
    expected = sum(state.seconds or 0 for state in missing)
    unknown = sum(state.seconds is None for state in missing)
    print(
        f"{len(states)} cells, {len(states) - len(missing)} up to date, {len(missing)} to build"
        + (f", about {expected / 60:.0f} min of one processor" if expected else "")
        + (f", {unknown} of unknown length" if unknown else ""),
        file=sys.stderr,
    )


@matrix.command("build")
def build(
    file: File,
    store: Store = "",
    shard: Shard = "",
    on: Annotated[str, typer.Option("--on", help=f"Where: {' or '.join(ENGINES)}.")] = "local",
    address: Annotated[str, typer.Option("--address", help="The Ray cluster's. Default: RAY_ADDRESS, else a new one here.")] = "",
    jobs: Annotated[int, typer.Option("--jobs", help="Cells at once, here. Default: as the processors have room for.", min=0)] = 0,
    json: Json = False,
) -> None:
    """Build what the store lacks of a matrix. A cell that fails does not stop the others; what is finished is in the store."""
    engine = _engine(choice(on, known=ENGINES, field="--on"), address, jobs)
    found = _read(file, store, shard)
    states = _states(found)
    from aot.cache_store.root import default_root
    from aot.fleet.drive import drive

    try:
        with _told(sum(state.to_build for state in states)) as (begun, done):
            outcome = drive(states, engine, store=found.store, root=default_root(os.environ), begun=begun, done=done)
    except KeyboardInterrupt:
        print("interrupted: what is finished is in the store, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json({"present": outcome.present, "rows": [row.to_json() for row in outcome.rows]})
    else:
        for row in outcome.rows:
            print(row.digest or f"failed: {row.name}")
    print(f"{outcome.present} up to date, {len(outcome.rows) - len(outcome.failed)} built, {len(outcome.failed)} failed", file=sys.stderr)
    if outcome.failed:
        raise typer.Exit(INCOMPLETE)


def _read(file: Path, store: str, shard: str) -> Matrix:
    from dataclasses import replace

    from aot.fleet.matrix import Matrix

    found = Matrix.read(file)
    found = replace(found, store=store or found.store)
    return found.shard(shard) if shard else found


def _states(found: Matrix) -> list[State]:
    from aot.cache_store.root import default_root
    from aot.fleet.keys import Keys
    from aot.fleet.state import states
    from aot.verbs.stores import local_store, open_remote

    local = local_store()
    entries = list((open_remote(found.store) if found.store else local).entries())
    keys = Keys(default_root(os.environ), os.environ, found=lambda cell: print(f"looking into {cell}", file=sys.stderr))
    return states(found.cells, keys.of(found.cells), entries)


def _engine(on: str, address: str, jobs: int) -> Engine:
    from aot.errors import BadInput
    from aot.fleet.engine import Here

    if on == "local":
        if address:
            raise BadInput("--address: only a Ray cluster has one.", remedy="add --on ray, or leave it out.")
        return Here(jobs)
    if jobs:
        raise BadInput("--jobs: Ray itself knows how many cells there is room for.", remedy="leave it out.")
    from aot.fleet.on_ray import OnRay

    return OnRay(address)


def _cells(state: State) -> tuple[str, ...]:
    if state.entry is not None:
        return str(state.cell), "up to date", "", "", state.entry.digest.short
    expected = "" if state.seconds is None else f"{state.seconds:.0f} s"
    return str(state.cell), "to build", expected, "" if state.memory is None else size(state.memory), state.why


@contextmanager
def _told(total: int) -> Iterator[tuple[Callable[[str], None], Callable[[Row], None]]]:
    """Two functions to be told of cells that begin and of rows that are done: a line for each row, and on a terminal what is under way."""
    from rich.console import Console

    console, counts = Console(stderr=True, highlight=False), Counter[str]()

    def said(row: Row) -> None:
        counts["done"] += 1
        made = f"{'built' if row.fresh else 'was built already'} {row.digest[:19]}, {size(row.size)}"
        what = f"FAILED ({row.status}) {row.said}" if row.status else made
        console.print(f"[{counts['done']}/{total}] {row.name}: {what}, {row.seconds:.0f} s", markup=False, soft_wrap=True)

    if not console.is_terminal:
        yield (lambda _: None), said
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn(), console=console, transient=True
    ) as live:
        under_way: dict[str, TaskID] = {}

        def begun(name: str) -> None:
            under_way[name] = live.add_task(name, total=None)

        def done(row: Row) -> None:
            if row.name in under_way:
                live.remove_task(under_way.pop(row.name))
            said(row)

        yield begun, done
