"""`aot verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from aot.cli import stores
from aot.cli.request import Json
from aot.cli.text import print_json, size


def verify(
    artifact: Annotated[str, typer.Argument(help="Recipe, recipe@key, or the beginning of a key or digest.", metavar="REF")],
    execute: Annotated[
        bool, typer.Option("--exec", help="Also run every graph in a process of its own, and compare with its golden outputs.")
    ] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Forget that it ended a process on this host, without running it.")] = False,
    json: Json = False,
) -> None:
    """Check an artifact of the local store: who vouches for it, and every byte of every file."""
    from aot.cache_store.fsck import check_layers
    from aot.machine.target import Target
    from aot.shipping.listing import listing, pick

    local = stores.local_store()
    row, *_ = pick(listing(local), artifact)
    guard = stores.open_guard(local)
    admitted = guard.policy.admit_from(local, row.digest)  # not the guard: one that ended a process can be verified too
    files = check_layers(local, admitted.manifest)
    error = None
    if execute:
        from aot.serving.canary import send

        here = stores.machine("auto", Target.of_parts(admitted.manifest.key))
        error = send(local, admitted, here=here, guard=guard, again=True)
    if execute or forget:
        guard.forget(row.digest)
    crashed = guard.crashed(row.digest)
    if json:
        told = {"digest": str(row.digest), "trusted": admitted.by, "files": files, "canary_error": error, "crashed_here": crashed}
        print_json(told)
        return
    print(f"{row.ref.name} {row.digest}")
    print(f"  trusted: {admitted.by}")
    print(f"  sound: {files} files in {len(admitted.manifest.layers)} layers, {size(admitted.manifest.size)}")
    if error is not None:
        print(f"  runs here: relative L2 error {error:.1e} against its golden outputs")
    if crashed:
        print("  it ended a process on this host before, and is not loaded (--exec runs it apart, --forget forgets)")
