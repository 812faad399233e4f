"""`aot record`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aot.cli.request import Json
from aot.cli.text import end_as, print_json
from aot.errors import BadInput


def record(
    command: Annotated[list[str], typer.Argument(help="The program, as it is started: python serve.py.", metavar="-- COMMAND...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The Record's file; of several pipelines, the beginning of each name.")],
    json: Json = False,
) -> None:
    """Run a program unchanged, and write down what its pipelines call: a file that `aot build` builds from.

    It runs with its own weights, on its own GPU; the file is of use on any host. No weight, prompt or picture is in the file.
    """
    from aot.verbs.record import record_program

    ran = record_program(command, output)
    for note in ran.notes:
        print(f"not recorded: {note}", file=sys.stderr)
    if json:
        print_json({"status": ran.status, "records": {name: str(file) for name, file in ran.files.items()}, "notes": list(ran.notes)})
    else:
        for name, file in ran.files.items():
            print(f"recorded {name}; build it with: aot build {file} --gpu GPU", file=sys.stderr)
            print(file)
    end_as(ran.status)
    if not ran.files:
        raise BadInput(
            "no pipeline was recorded: the program called none, or started a Python that ignores PYTHONPATH (-I, -E, sudo).",
            remedy="start it with the Python that aot is installed for, and let it call a diffusers pipeline.",
        )
