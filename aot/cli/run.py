"""`aot run`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from aot.cli.request import Json, ModeWords
from aot.cli.text import end_as, print_json, print_table
from aot.environment import GRAPH_CACHE
from aot.errors import Miss
from aot.request.options import DEFAULT_MODE, Options

if TYPE_CHECKING:
    from aot.verbs.run import Proof

_STORE = f"Where artifacts are: 1 is the local store. Default: what {GRAPH_CACHE} says, else 1."


def run(
    command: Annotated[list[str], typer.Argument(help="The program, as it is started: python serve.py.", metavar="-- COMMAND...")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 10 unless everything was served, and nothing compiled.")] = False,
    store: Annotated[str, typer.Option(help=_STORE, metavar="STORE")] = "",
    mode: ModeWords = "",
    json: Json = False,
) -> None:
    """Run a program unchanged, its pipelines served from artifacts, and prove at its end what was used.

    Where nothing serves a call it computes eagerly. All of its processes are served, workers too.
    """
    from aot.verbs.run import run_program

    options = Options.parse({"mode": mode or DEFAULT_MODE}).to_json()
    named = store or os.environ.get(GRAPH_CACHE, "")
    proof = run_program(command, store="1" if named in ("", "0") else named, options=options)
    if json:
        print_json(proof.to_json())
    else:
        _print(proof)
    end_as(proof.status)
    if strict and (lacking := proof.lacking()):
        raise Miss(f"not everything was served: {lacking.rstrip('.')}.", remedy="`aot record` the program, and build what it calls.")


def _print(proof: Proof) -> None:
    """On stderr: the program's own output is on stdout."""
    columns = ("pipeline", "component", "artifact", "hits", "misses", "loaded in", "why")
    rows = [
        (one.pipeline, one.component, " ".join(one.artifacts) or "-", str(one.hits), str(one.misses), f"{one.seconds:.2f} s", one.why)
        for one in proof.used
    ]
    if rows:
        print_table(columns, rows, file=sys.stderr)
    for note in proof.notes:
        print(f"not served: {note}", file=sys.stderr)
    print(f"{proof.calls} calls of pipelines in {proof.processes} processes; torch.compile made {proof.compiled} graphs", file=sys.stderr)
