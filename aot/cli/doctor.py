"""`aot doctor`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated

import typer

from aot.cli.request import Json
from aot.cli.text import print_json, print_table
from aot.errors import BadEnvironment


def doctor(
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 if anything is lacking, also what only building needs.")] = False,
    json: Json = False,
) -> None:
    """Look at what this machine has of all that building and serving need, and say the remedy for what it lacks.

    Exits with 3 if serving lacks something.
    """
    from aot.verbs.doctor import SERVE
    from aot.verbs.doctor import doctor as look

    found = look(os.environ)
    if json:
        print_json([{**asdict(one), "ok": one.ok} for one in found])
    else:
        rows = [("ok" if one.ok else "LACKS", one.what, one.needed_to, one.found, one.remedy) for one in found]
        print_table(("", "what", "needed to", "found", "remedy"), rows)
    if lacking := next((one for one in found if not one.ok and (strict or one.needed_to == SERVE)), None):
        raise BadEnvironment(f"{lacking.what}: {lacking.found}.", remedy=lacking.remedy)
