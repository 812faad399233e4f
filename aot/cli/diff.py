"""`aot diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from aot.cli.request import Json
from aot.cli.text import print_json, print_table
from aot.verbs.stores import local_store

_WHICH = "Recipe, recipe@key, or the beginning of a key or digest."


def diff(
    one: Annotated[str, typer.Argument(help=_WHICH, metavar="A")],
    other: Annotated[str, typer.Argument(help=_WHICH, metavar="B")],
    json: Json = False,
) -> None:
    """Say in what two artifacts differ: each part of their keys, and what it would come to.

    That is, where A is there and B is asked for. Where a name stands for several artifacts, it is the newest.
    """
    from aot.artifact.key import Key
    from aot.shipping.listing import listing, pick
    from aot.verbs.explain import compared

    rows = listing(local_store())
    (a, *_), (b, *_) = pick(rows, one), pick(rows, other)
    found = compared(Key(a.entry.key), Key(b.entry.key))
    if json:
        parts = [{"part": one.name, "a": one.built, "b": one.asked, "is": one.weight, "why": one.why} for one in found]
        print_json({"a": str(a.digest), "b": str(b.digest), "parts": parts})
        return
    if a.digest == b.digest:
        print(f"{one} and {other} are one artifact: {a.ref.name} {a.digest.short}")
    elif not found:
        print(f"{a.digest.short} and {b.digest.short} were built of the same key: they differ in when, and in what was timed")
    else:
        columns = ("part", f"{a.ref.name} {a.digest.short}", f"{b.ref.name} {b.digest.short}", "is", "why")
        print_table(columns, [(one.name, one.built or "-", one.asked or "-", one.weight, one.why) for one in found])
