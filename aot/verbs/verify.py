"""Verify: who vouches for an artifact of the local store, and whether every byte of it is sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aot.artifact.kernels import kernels_of
from aot.cache_store.fsck import check_layers
from aot.cache_store.trust import Admitted
from aot.errors import LoadFailed
from aot.machine.fit import built_for, is_packaged
from aot.machine.target import Target
from aot.shipping.listing import listing, pick
from aot.verbs.stores import local_store, machine, open_guard

if TYPE_CHECKING:
    from aot.artifact.guard import Guard
    from aot.building.build import Built
    from aot.cache_store.local import LocalStore


@dataclass(frozen=True, slots=True)
class Verified:
    """A sound artifact: by whose word it is admitted, how many files were read, the relative L2 error of its graphs against their
    golden outputs where they were run, and whether it ended a process on this host before. Packages of others have no golden outputs:
    of them `ran` alone tells."""

    admitted: Admitted
    files: int
    error: float | None
    crashed: bool
    ran: bool = False


def verify(artifact: str | Built, *, execute: bool = False, forget: bool = False) -> Verified:
    """Check an artifact of the local store, which is named as for `push`: its signatures, and every byte of every file.

    `execute` runs every graph too, in a process of its own, and compares with its golden outputs; `forget` forgets that it ended a
    process on this host, without running it. Raises Missing, Untrusted, Corrupt, OutsideTolerance, LoadFailed.
    """
    local = local_store()
    row, *_ = pick(listing(local), artifact if isinstance(artifact, str) else str(artifact.digest))
    guard = open_guard(local)
    admitted = guard.policy.admit_from(local, row.digest)  # not the guard: one that ended a process can be verified too
    files, error = check_layers(local, admitted.manifest), None
    for kernel in kernels_of(admitted.manifest.producer):
        if kernel.hub:
            kernel.hub.fetch(anew=False)
    if execute:
        here = machine("auto", Target.of_parts(admitted.manifest.key))
        if is_packaged(admitted.manifest.key):
            _rehearse(local, admitted, here, guard)
        else:
            from aot.serving.canary import send

            error = send(local, admitted, here=here, guard=guard, again=True)
    if execute or forget:
        guard.forget(row.digest)
    return Verified(admitted, files, error, guard.crashed(row.digest), execute)


def _rehearse(local: LocalStore, admitted: Admitted, here: Target, guard: Guard) -> None:
    """Raises LoadFailed for packages of another machine too: nothing of them is run."""
    from aot.serving.rehearsal import rehearse

    if differences := built_for(admitted.manifest.key, here):
        raise LoadFailed(
            f"{admitted.manifest.name} {admitted.digest.short} is for another machine: {differences[0]}.",
            remedy="verify it there; `aot targets --here` says what this one is.",
        )
    rehearse(local, admitted, here=here, guard=guard, again=True)
