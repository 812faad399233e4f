"""`aot prune`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import typer

from aot.cli.request import Json
from aot.cli.text import now, print_json, size
from aot.errors import BadInput
from aot.verbs.stores import local_store

_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def prune(
    older_than: Annotated[str, typer.Option(help="Age such as 30d, 12h or 45m.", metavar="AGE")] = "",
    all: Annotated[bool, typer.Option("--all", help="Remove every artifact.")] = False,
    json: Json = False,
) -> None:
    """Remove artifacts from the local store, and every byte that no artifact needs."""
    if bool(older_than) == all:
        raise BadInput("prune needs either --older-than or --all.", remedy="for example `aot prune --older-than 30d`.")
    from aot.cache_store.prune import prune as prune_store

    age = _age(older_than) if older_than else timedelta.min
    pruned = prune_store(local_store(), now=now(), older_than=age)
    if json:
        print_json({"removed": list(map(str, pruned.refs)), "freed": pruned.freed})
        return
    for ref in pruned.refs:
        print(f"{ref.name}@{ref.key.short}")
    typer.echo(f"removed {len(pruned.refs)} artifacts, freed {size(pruned.freed)}", err=True)


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+)([dhm])", text)
    if not match:
        raise BadInput(f"--older-than {text!r} is not a number and one of d, h, m.", remedy="for example 30d.")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
