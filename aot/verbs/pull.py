"""Pull: download what this machine would load, from whom it trusts."""

from __future__ import annotations

import os
from collections.abc import Collection

from aot.artifact.guard import Guard
from aot.artifact.kernels import kernels_of
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Untrusted
from aot.cache_store.fsck import examine
from aot.cache_store.local import LocalStore
from aot.cache_store.lock import Lock, lock_file
from aot.cache_store.signing import merge
from aot.cache_store.store import Entry, Store
from aot.cache_store.transfer import pull as transfer
from aot.cache_store.trust import Admitted
from aot.errors import BadInput
from aot.shipping.listing import Row
from aot.shipping.offer import Wanted, offers
from aot.verbs.stores import (
    Moving,
    Say,
    allowed,
    ask,
    choose,
    describe,
    local_store,
    log,
    machine,
    named_in,
    open_guard,
    open_source,
    unseen,
)


def pull(
    recipe: str = "",
    store: str = "",
    *,
    gpu: str = "auto",
    mode: str = "",
    variant: str = "",
    all: bool = False,
    allow: Collection[str] = (),
    repair: bool = False,
    say: Say = log,
    moving: Moving = unseen,
) -> list[Admitted]:
    """Download the best artifact of a name for a machine into the local store; without a name, everything that aot.lock pins.

    `recipe` may be a store that holds artifacts of one name, or packages that others made: `hf://zerogpu-aoti/Wan2`.
    `gpu`: `auto`, this machine, or another by its name in `aot targets`. `mode` and `variant` take only such. `all` takes every
    artifact that would be loaded there. `allow` names differences from the machine it was built for: `other-sku`, `other-torch`.
    `repair` hashes what is here already and fetches again what is damaged. What an interrupted pull left is gone on with.

    Loading an artifact runs its author's code: only what is signed by a key that the user listed, or pinned in aot.lock, is taken.
    Raises BadInput, Missing, Miss when nothing would be loaded there, Untrusted, RolledBack, Denied, Unreachable.
    """
    if bool(recipe) != bool(store) and "/" not in recipe:
        raise BadInput(
            "pull needs RECIPE and --from STORE, a store of one name, or nothing to pull what aot.lock pins.",
            remedy="aot pull pixart-alpha --from hf://…",
        )
    local = local_store()
    guard = open_guard(local)
    if repair:
        for finding in examine(local):
            say(f"{finding}; quarantined")
            local.quarantine(finding.culprit)
    if not recipe:
        return _pull_pins(local, guard, gpu, say=say, moving=moving)
    name, source = named_in(recipe, store)
    offered = choose(ask(source, Wanted(name, mode, variant, allowed(allow)), gpu), every=all, say=say)
    return _take(source, [offer.row.digest for offer in offered], local, guard, every=all, say=say, moving=moving)


def _take(store: Store, digests: list[Digest], local: LocalStore, guard: Guard, *, every: bool, say: Say, moving: Moving) -> list[Admitted]:
    """Pull the first that may be trusted, or all of those. Raises Untrusted when none may."""
    taken, refused = list[Admitted](), None
    for digest in digests:
        try:
            taken.append(_pull_one(store, digest, local, guard, say, moving))
        except Untrusted as error:
            refused = refused or error
            say(f"not {digest.short}: {error.message}")
            continue
        if not every:
            break
    if not taken and refused:
        raise refused
    return taken


def _pull_one(store: Store, digest: Digest, local: LocalStore, guard: Guard, say: Say, moving: Moving) -> Admitted:
    raw = store.manifest(digest)
    envelope = merge(local.envelope(digest), store.envelope(digest))
    admitted = guard.policy.admit(raw, digest, envelope=envelope, origins=store.origins(digest))
    with moving(f"{admitted.manifest.name} {digest.short}", admitted.manifest.size) as told:
        transfer(admitted, raw, envelope, source=store, local=local, told=told)
    for kernel in kernels_of(admitted.manifest.producer):
        if kernel.hub:
            kernel.hub.fetch()
            say(f"its graphs call {kernel.namespace}: {kernel.hub.repository}@{kernel.hub.revision[:12]} is here")
    return admitted


def _pull_pins(local: LocalStore, guard: Guard, gpu: str, *, say: Say, moving: Moving) -> list[Admitted]:
    """What the lock file pins and would be loaded on that machine, each from where it was found."""
    pins = Lock.read(lock_file(os.environ)).pins
    if not pins:
        raise BadInput(f"{lock_file(os.environ)} pins nothing.", remedy="`aot lock RECIPE --from STORE`, or name the recipe and the store.")
    taken = []
    for pin in pins:
        store = open_source(pin.store)
        raw = store.manifest(pin.digest)
        manifest = guard.policy.admit(raw, pin.digest, envelope=None, origins=store.origins(pin.digest)).manifest
        row = Row(Entry.of(pin.ref, pin.digest, manifest))
        (offer,) = offers([row], Wanted(pin.ref.name), lambda built: machine(gpu, built))
        if offer.refused:
            say(f"not {describe(offer)}: {'; '.join(offer.refused)}")
        else:
            taken.append(_pull_one(store, pin.digest, local, guard, say, moving))
    return taken
