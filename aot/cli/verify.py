"""`aot verify`."""

from __future__ import annotations

from typing import Annotated

import typer

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
    from aot.verbs.verify import verify as check

    found = check(artifact, execute=execute, forget=forget)
    manifest, digest, error = found.admitted.manifest, found.admitted.digest, found.error
    if json:
        told = {"digest": str(digest), "trusted": found.admitted.by, "files": found.files}
        print_json({**told, "canary_error": error, "ran": found.ran, "crashed_here": found.crashed})
        return
    print(f"{manifest.name} {digest}")
    print(f"  trusted: {found.admitted.by}")
    print(f"  sound: {found.files} files in {len(manifest.layers)} layers, {size(manifest.size)}")
    if found.ran and error is None:
        print("  runs here: in a process of its own, on tensors made up for it; packages of others have no golden outputs")
    if error is not None:
        print(f"  runs here: relative L2 error {error:.1e} against its golden outputs")
    if found.crashed:
        print("  it ended a process on this host before, and is not loaded (--exec runs it apart, --forget forgets)")
