"""`aot push`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from aot.cli import stores
from aot.cli.request import Json
from aot.cli.text import print_json, size, transfer_bar
from aot.environment import SIGNING_KEY
from aot.errors import BadInput


def push(
    artifact: Annotated[str, typer.Argument(help="Recipe, recipe@key, or the beginning of a key or digest.", metavar="REF")],
    store: stores.Location,
    all: Annotated[bool, typer.Option("--all", help="Every artifact that REF names, not the newest alone.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Make the repository if it is not there: private, unless --public.")] = False,
    public: Annotated[bool, typer.Option("--public", help="With --create: readable by everybody.")] = False,
    json: Json = False,
) -> None:
    """Upload an artifact with its signatures: to the Hub in one commit, with a card that lists what the repository holds."""
    from aot.cache_store.hub import HubStore
    from aot.cache_store.signing import SigningKey
    from aot.cache_store.transfer import push as transfer
    from aot.shipping.card import render
    from aot.shipping.listing import listing, pick

    if public and not create:
        raise BadInput("--public says how to --create.", remedy="add --create, or leave --public out.")
    local = stores.local_store()
    rows = pick(listing(local), artifact)
    if len(rows) > 1 and not all:
        print(f"{artifact} names {len(rows)} artifacts; the newest is pushed (--all for every one)", file=sys.stderr)
        rows = rows[:1]
    guard, target = stores.open_guard(local), stores.open_remote(store)
    if isinstance(target, HubStore):
        target.card = lambda entries: render(entries, target.location)
        if create:
            target.create(private=not public)
    for row in rows:
        if key := os.environ.get(SIGNING_KEY):
            raw = local.manifest(row.digest)
            local.commit(row.ref, raw, {}, envelope=SigningKey(Path(key).expanduser()).sign(raw))
        admitted = guard.admit(local, row.digest)
        with transfer_bar(f"{row.ref.name} {row.digest.short}", admitted.manifest.size) as told:
            transfer(row.ref, source=local, target=target, told=told)
        if not json:
            print(f"pushed {row.ref.name} {row.digest.short}, {size(row.entry.size)}, to {target}", file=sys.stderr)
            print(row.digest)
    if json:
        print_json([{"recipe": row.ref.name, "digest": str(row.digest), "store": target.location, "size": row.entry.size} for row in rows])
