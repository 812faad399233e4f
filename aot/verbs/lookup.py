"""Lookup and lock: what a store has for a machine, and pinning the best of it."""

from __future__ import annotations

import os
from collections.abc import Collection

from aot.cache_store.errors import Corrupt
from aot.cache_store.lock import Lock, Pin, lock_file
from aot.cache_store.store import Ref, read_manifest
from aot.shipping.offer import Offer, Wanted
from aot.verbs.stores import Say, allowed, ask, choose, log, named_in


def lookup(
    recipe: str, store: str = "", *, gpu: str = "auto", mode: str = "", variant: str = "", allow: Collection[str] = ()
) -> list[Offer]:
    """What a store has of a recipe, the best for that machine first, each with why it would not be loaded there: one request, and
    nothing is downloaded. See `pull`. Raises Missing, RolledBack, Denied, Unreachable."""
    name, source = named_in(recipe, store)
    return ask(source, Wanted(name, mode, variant, allowed(allow)), gpu)


def lock(
    recipe: str,
    store: str = "",
    *,
    gpu: str = "auto",
    mode: str = "",
    variant: str = "",
    all: bool = False,
    allow: Collection[str] = (),
    say: Say = log,
) -> list[Pin]:
    """Pin the best artifact for a machine, or `all`, by digest and commit in aot.lock (or the file that AOT_LOCK names).

    A pin is trust: these very bytes are loaded from then on, whoever signed them. See `pull`. Raises as `lookup` does, Miss, Corrupt.
    """
    name, source = named_in(recipe, store)
    chosen = choose(ask(source, Wanted(name, mode, variant, allowed(allow)), gpu), every=all, say=say)
    pins = []
    for offer in chosen if all else chosen[:1]:
        row = offer.row
        manifest = read_manifest(source, row.digest)
        if Ref.of(manifest) != row.ref or manifest.key != row.entry.key:
            raise Corrupt(
                f"{source.location} lists {row.digest.short} as what its manifest is not.", remedy="ask its owner; pin nothing of it."
            )
        pins.append(Pin(str(source), row.ref, row.digest, {"target": row.target, "mode": row.mode, "shapes": row.shapes}))
    path = lock_file(os.environ)
    Lock.read(path).pin(pins).write(path)
    say(f"pinned in {path}; commit that file")
    return pins
