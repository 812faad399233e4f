"""Push: upload artifacts with their signatures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from aot.artifact.kinds import SPACES
from aot.cache_store.hub import Beside, HubStore
from aot.cache_store.signing import SigningKey
from aot.cache_store.transfer import push as transfer
from aot.environment import signing_key
from aot.errors import BadInput
from aot.shipping.card import render
from aot.shipping.listing import Row, listing, pick
from aot.shipping.spaces import at_root
from aot.verbs.stores import Moving, Say, local_store, log, open_guard, open_remote, unseen

if TYPE_CHECKING:
    from aot.building.build import Built
    from aot.cache_store.local import LocalStore
    from aot.cache_store.trust import Admitted


def push(
    artifact: str | Built,
    store: str,
    *,
    all: bool = False,
    create: bool = False,
    public: bool = False,
    variant: str = "",
    replace: bool = False,
    say: Say = log,
    moving: Moving = unseen,
) -> list[Row]:
    """Upload an artifact of the local store: to the Hub in one commit, with a card that lists what the repository holds.

    `artifact` is what a build returned, or a recipe, `recipe@key`, or the beginning of a key or digest; `all` pushes every artifact
    that it names, not the newest alone. `store`: `hf://ORG/REPO`, `s3://…`, any fsspec URL, or a path. `create` makes a repository
    that is not there: private, unless `public`. An artifact that was built with packages for Spaces has them put at the root of a
    repository too, under the name of `variant`; they take the place of those of something else only if `replace`.
    Raises BadInput, Missing, Untrusted, Denied, Unreachable.
    """
    if public and not create:
        raise BadInput("--public says how to --create.", remedy="add --create, or leave --public out.")
    local = local_store()
    rows = pick(listing(local), artifact if isinstance(artifact, str) else str(artifact.digest))
    if len(rows) > 1 and not all:
        say(f"{artifact} names {len(rows)} artifacts; the newest is pushed (--all for every one)")
        rows = rows[:1]
    _check_packages(rows, wanted=bool(variant or replace))
    guard, target = open_guard(local), open_remote(store)
    if isinstance(target, HubStore):
        target.card = lambda entries, count: render(entries, target.location, count)
        if create:
            target.create(private=not public)
    for row in rows:
        if key := signing_key(os.environ):
            raw = local.manifest(row.digest)
            local.commit(row.ref, raw, {}, envelope=SigningKey(key).sign(raw))
        admitted = guard.admit(local, row.digest)
        with ExitStack() as stack:
            if isinstance(target, HubStore):
                target.beside = stack.enter_context(_beside(local, admitted, variant, replace=replace))
            told = stack.enter_context(moving(f"{row.ref.name} {row.digest.short}", admitted.manifest.size))
            transfer(row.ref, source=local, target=target, told=told)
    return rows


@contextmanager
def _beside(local: LocalStore, admitted: Admitted, variant: str, *, replace: bool) -> Iterator[Beside]:
    """What is put at the repository's root: packages, where the artifact has them."""
    layer = admitted.manifest.layer(SPACES)
    if layer is None:
        yield lambda _: {}
        return
    from aot.artifact.ledger import Ledger
    from aot.artifact.opened import run_directory, unpack

    with run_directory("aot-spaces-") as folder:
        unpack(local, admitted, layer=layer, into=folder, ledger=Ledger())
        yield lambda root: at_root(root, folder, variant, replace=replace)


def _check_packages(rows: list[Row], *, wanted: bool) -> None:
    """Raises BadInput where packages of one artifact would take the place of another's, or where they are `wanted` and there are none."""
    having = [row for row in rows if row.part("layout") == SPACES]
    if len(having) > 1:
        raise BadInput(
            f"--all: {len(having)} of these have packages for Spaces, and a repository has room for one's.",
            remedy="push them one by one, with --variant.",
        )
    if wanted and not having:
        raise BadInput("--variant and --replace are of packages for Spaces, and it has none.", remedy="build with --layout spaces.")
