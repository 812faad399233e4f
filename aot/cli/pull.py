"""`aot pull`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aot.cli import stores
from aot.cli.request import Json
from aot.cli.text import print_json, size, transfer_bar
from aot.errors import BadInput

if TYPE_CHECKING:
    from aot.artifact.guard import Guard
    from aot.cache_store.digest import Digest
    from aot.cache_store.local import LocalStore
    from aot.cache_store.store import Store
    from aot.cache_store.trust import Admitted


def pull(
    recipe: Annotated[str, typer.Argument(help="Recipe; without one everything that aot.lock pins.", metavar="[RECIPE]")] = "",
    source: stores.From = "",
    gpu: stores.Gpu = "auto",
    mode: stores.ModeWords = "",
    variant: stores.Variant = "",
    all: stores.Every = False,
    allow_other_sku: stores.OtherSku = False,
    allow_other_torch: stores.OtherTorch = False,
    repair: Annotated[bool, typer.Option("--repair", help="Hash what is here already, and fetch again what is damaged.")] = False,
    json: Json = False,
) -> None:
    """Download the best artifact for this machine into the local store, and say why the others are not taken.

    Loading an artifact runs its author's code: only what is signed by a key that you listed (`aot trust add`), or pinned in
    aot.lock, is taken. What an interrupted pull left is gone on with.
    """
    if bool(recipe) != bool(source):
        raise BadInput(
            "pull needs RECIPE and --from STORE, or neither to pull what aot.lock pins.", remedy="aot pull pixart-alpha --from hf://…"
        )
    local = stores.local_store()
    guard = stores.open_guard(local)
    if repair:
        _repair(local)
    if not recipe:
        taken = _pull_pins(local, guard, gpu)
    else:
        from aot.shipping.offer import Wanted

        wanted = Wanted(recipe, mode, variant, stores.allowed(allow_other_sku, allow_other_torch))
        store = stores.open_remote(source)
        offered = stores.choose(stores.ask(store, wanted, gpu), every=all)
        taken = _take(store, [offer.row.digest for offer in offered], local, guard, every=all)
    if json:
        print_json([_plain(admitted) for admitted in taken])
        return
    for admitted in taken:
        print(f"pulled {admitted.manifest.name} {admitted.digest.short}, {size(admitted.manifest.size)}, {admitted.by}", file=sys.stderr)
        print(admitted.digest)


def _take(store: Store, digests: list[Digest], local: LocalStore, guard: Guard, *, every: bool) -> list[Admitted]:
    """Pull the first that may be trusted, or all of those. Raises Untrusted when none may."""
    from aot.cache_store.errors import Untrusted

    taken, refused = [], None
    for digest in digests:
        try:
            taken.append(_pull_one(store, digest, local, guard))
        except Untrusted as error:
            refused = refused or error
            print(f"not {digest.short}: {error.message}", file=sys.stderr)
            continue
        if not every:
            break
    if not taken and refused:
        raise refused
    return taken


def _pull_one(store: Store, digest: Digest, local: LocalStore, guard: Guard) -> Admitted:
    from aot.cache_store.signing import merge
    from aot.cache_store.transfer import pull as transfer

    raw = store.manifest(digest)
    envelope = merge(local.envelope(digest), store.envelope(digest))
    admitted = guard.policy.admit(raw, digest, envelope=envelope, origins=store.origins(digest))
    with transfer_bar(f"{admitted.manifest.name} {digest.short}", admitted.manifest.size) as told:
        transfer(admitted, raw, envelope, source=store, local=local, told=told)
    return admitted


def _pull_pins(local: LocalStore, guard: Guard, gpu: str) -> list[Admitted]:
    """What the lock file pins and would be loaded on that machine, each from where it was found."""
    from aot.cache_store.lock import Lock, lock_file
    from aot.cache_store.store import Entry
    from aot.shipping.listing import Row
    from aot.shipping.offer import Wanted, offers

    pins = Lock.read(lock_file(os.environ)).pins
    if not pins:
        raise BadInput(f"{lock_file(os.environ)} pins nothing.", remedy="`aot lock RECIPE --from STORE`, or name the recipe and the store.")
    taken = []
    for pin in pins:
        store = stores.open_remote(pin.store)
        raw = store.manifest(pin.digest)
        manifest = guard.policy.admit(raw, pin.digest, envelope=None, origins=store.origins(pin.digest)).manifest
        row = Row(Entry.of(pin.ref, pin.digest, manifest))
        (offer,) = offers([row], Wanted(pin.ref.name), lambda built: stores.machine(gpu, built))
        if offer.refused:
            print(f"not {stores.describe(offer)}: {'; '.join(offer.refused)}", file=sys.stderr)
        else:
            taken.append(_pull_one(store, pin.digest, local, guard))
    return taken


def _repair(local: LocalStore) -> None:
    from aot.cache_store.fsck import examine

    for finding in examine(local):
        print(f"{finding}; quarantined", file=sys.stderr)
        local.quarantine(finding.culprit)


def _plain(admitted: Admitted) -> dict[str, Any]:
    return {"recipe": admitted.manifest.name, "digest": str(admitted.digest), "size": admitted.manifest.size, "trusted": admitted.by}
