"""`aot matrix`: plan, build, watch, report."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from aot.choice import choice
from aot.cli.app import PLAIN
from aot.cli.request import Json
from aot.cli.text import print_json, print_table, size
from aot.environment import signing_key
from aot.errors import INCOMPLETE, INTERRUPTED, REGRESSED, BadInput

if TYPE_CHECKING:
    from rich.progress import TaskID

    from aot.cache_store.store import Entry
    from aot.fleet.engine import Engine
    from aot.fleet.matrix import Matrix
    from aot.fleet.state import State
    from aot.fleet.work import Row

ENGINES = ("local", "ray", "hf-jobs")

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
On: TypeAlias = Annotated[str, typer.Option("--on", help=f"Where: {' or '.join(ENGINES)}.")]
Address: TypeAlias = Annotated[str, typer.Option("--address", help="The Ray cluster's. Default: RAY_ADDRESS, else a new one here.")]
Image: TypeAlias = Annotated[str, typer.Option("--image", help="Of the Hub's jobs: a Docker image or Space that has aot.")]
Namespace: TypeAlias = Annotated[str, typer.Option("--namespace", help="Of the Hub's jobs: who pays. Default: you.")]
Jobs: TypeAlias = Annotated[
    int, typer.Option("--jobs", help="Cells at once. Default: as the processors here have room for; 8 of the Hub's jobs.", min=0)
]


@matrix.command("plan")
def plan(file: File, store: Store = "", shard: Shard = "", on: On = "local", json: Json = False) -> None:
    """Tell what the store has of a matrix, what is to build and why, and what that will take. Nothing is built."""
    found = _read(file, store, shard)
    states = _states(found, _entries(found), away=choice(on, known=ENGINES, field="--on") != "local")
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
    on: On = "local",
    address: Address = "",
    image: Image = "",
    namespace: Namespace = "",
    jobs: Jobs = 0,
    json: Json = False,
) -> None:
    """Build what the store lacks of a matrix. A cell that fails does not stop the others; what is finished is in the store."""
    found = _read(file, store, shard)
    engine = _engine(on, found.store, address=address, jobs=jobs, image=image, namespace=namespace)
    _drive(_states(found, _entries(found), away=engine.away), engine, found.store, json=json)


@matrix.command("watch")
def watch(
    file: File,
    do_build: Annotated[bool, typer.Option("--build", help="Build what moved, and what is new.")] = False,
    store: Store = "",
    on: On = "local",
    address: Address = "",
    image: Image = "",
    namespace: Namespace = "",
    jobs: Jobs = 0,
    json: Json = False,
) -> None:
    """Tell, once, what a new torch or diffusers or another revision of a model moves, and what building that will take: for a scheduler."""
    from aot.fleet.watch import releases, with_torch

    found = _read(file, store, "")
    engine = _engine(on, found.store, address=address, jobs=jobs, image=image, namespace=namespace)
    published = releases(os.environ)
    added, why = with_torch(found.cells, published)
    states = _states(replace(found, cells=(*found.cells, *added)), _entries(found), away=engine.away)
    states = [replace(state, why=why) if state.cell in added and state.to_build else state for state in states]
    moved = [state for state in states if state.to_build]
    for release in published:
        if release.is_new and release.name != "torch":
            print(f"{release}: install it, and the plan says which cells' code it moves", file=sys.stderr)
    if do_build:
        _drive(states, engine, found.store, json=json)
    elif json:
        told = [{"name": one.name, "here": one.here, "newest": one.newest} for one in published]
        print_json({"published": told, "moved": [state.to_json() for state in moved]})
    else:
        print_table(("cell", "state", "expected", "memory", "why"), [_cells(state) for state in moved])
        print(f"{len(moved)} cells to build", file=sys.stderr)


def _drive(states: list[State], engine: Engine, store: str, *, json: bool) -> None:
    from aot.cache_store.root import default_root
    from aot.fleet.drive import drive

    try:
        with _told(sum(state.to_build for state in states)) as (begun, done):
            outcome = drive(states, engine, store=store, root=default_root(os.environ), begun=begun, done=done)
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


@matrix.command("report")
def report(
    file: File,
    html: Annotated[Path | None, typer.Option("--html", help="Write the page here.", metavar="FILE")] = None,
    fail_over: Annotated[
        str, typer.Option("--fail-over", help="Exit with 14 where a build or the first calls got slower by more, as 10%.", metavar="SHARE")
    ] = "",
    store: Store = "",
    json: Json = False,
) -> None:
    """Tell what there is of a matrix as a grid, and how builds and first calls went over time."""
    from aot.fleet.report import courses, page

    allowed = _share(fail_over)
    found = _read(file, store, "")
    entries = _entries(found)
    states = _states(found, entries, away=True)
    course = courses(entries)
    slower = [one for one in course if allowed is not None and one.slower() > allowed]
    if html:
        html.write_text(page(states, course, allowed=allowed or 0.0))
    if json:
        told = [{"name": one.name, "what": one.what, "seconds": one.seconds, "slower": round(one.slower(), 4)} for one in course]
        print_json({"cells": [state.to_json() for state in states], "courses": told})
    else:
        print(f"{sum(not state.to_build for state in states)} of {len(states)} cells are there", file=sys.stderr)
    for one in slower:
        print(f"slower: {one}", file=sys.stderr)
    if slower:
        raise typer.Exit(REGRESSED)


def _share(text: str) -> float | None:
    if not text:
        return None
    try:
        found = float(text.removesuffix("%")) / 100
    except ValueError:
        found = -1.0
    if not (text.endswith("%") and found >= 0):
        raise BadInput(f"--fail-over {text!r} is no share.", remedy="for example --fail-over 10%.")
    return found


def _read(file: Path, store: str, shard: str) -> Matrix:
    from aot.fleet.matrix import Matrix

    found = Matrix.read(file)
    found = replace(found, store=_located(store or found.store))
    return found.shard(shard) if shard else found


def _located(store: str) -> str:
    """A folder by its whole path: a worker runs in another."""
    return str(Path(store).expanduser().absolute()) if store and "://" not in store else store


def _entries(found: Matrix) -> list[Entry]:
    from aot.verbs.stores import local_store, open_remote

    local = local_store()
    return list((open_remote(found.store) if found.store else local).entries())


def _states(found: Matrix, entries: list[Entry], *, away: bool) -> list[State]:
    from aot.cache_store.root import default_root
    from aot.fleet.keys import Keys
    from aot.fleet.state import states

    keys = Keys(default_root(os.environ), os.environ, away=away, found=lambda cell: print(f"looking into {cell}", file=sys.stderr))
    return states(found.cells, keys.of(found.cells), entries)


def _engine(on: str, store: str, **given: str | int) -> Engine:
    """Raises BadInput for an option of another engine."""
    choice(on, known=ENGINES, field="--on")
    own = {"local": ("jobs",), "ray": ("address",), "hf-jobs": ("image", "namespace", "jobs")}
    for name, value in given.items():
        if value and name not in own[on]:
            fitting = [engine for engine, names in own.items() if name in names]
            raise BadInput(f"--{name}: not of --on {on}.", remedy=f"leave it out, or choose --on {' or '.join(fitting)}.")
    jobs = int(given["jobs"])
    if on == "local":
        from aot.fleet.engine import Here

        return Here(jobs)
    if on == "ray":
        from aot.fleet.on_ray import OnRay

        if not store and (given["address"] or os.environ.get("RAY_ADDRESS")):
            raise BadInput("--on ray: without a store what is built would stay on the cluster's nodes.", remedy="--store hf://… or s3://….")
        return OnRay(str(given["address"]))
    from aot.fleet.on_jobs import OnJobs

    return OnJobs(str(given["image"]), store, str(given["namespace"]), signing_key(os.environ), jobs or 8)


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
