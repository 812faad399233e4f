"""`aot push`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aot.cli import stores
from aot.cli.request import Json
from aot.cli.text import print_json, size, transfer_bar


def push(
    artifact: Annotated[str, typer.Argument(help="Recipe, recipe@key, or the beginning of a key or digest.", metavar="REF")],
    store: stores.Location,
    all: Annotated[bool, typer.Option("--all", help="Every artifact that REF names, not the newest alone.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Make the repository if it is not there: private, unless --public.")] = False,
    public: Annotated[bool, typer.Option("--public", help="With --create: readable by everybody.")] = False,
    variant: Annotated[str, typer.Option(help="Of packages for Spaces: put them beside others, under this name.", metavar="NAME")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Of packages for Spaces: in the place of those of something else.")] = False,
    json: Json = False,
) -> None:
    """Upload an artifact with its signatures: to the Hub in one commit, with a card that lists what the repository holds."""
    from aot.verbs.push import push as push_artifacts

    rows = push_artifacts(
        artifact, store, all=all, create=create, public=public, variant=variant, replace=replace, say=stores.say, moving=transfer_bar
    )
    if json:
        print_json([{"recipe": row.ref.name, "digest": str(row.digest), "store": store, "size": row.entry.size} for row in rows])
        return
    for row in rows:
        print(f"pushed {row.ref.name} {row.digest.short}, {size(row.entry.size)}, to {store}", file=sys.stderr)
        print(row.digest)
