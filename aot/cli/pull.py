"""`aot pull`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aot.cli import stores
from aot.cli.request import Json
from aot.cli.text import print_json, size, transfer_bar

if TYPE_CHECKING:
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
    from aot.verbs.pull import pull as pull_artifacts

    allow = stores.allow(allow_other_sku, allow_other_torch)
    taken = pull_artifacts(
        recipe,
        source,
        gpu=gpu,
        mode=mode,
        variant=variant,
        all=all,
        allow=allow,
        repair=repair,
        say=stores.say,
        moving=transfer_bar,
    )
    if json:
        print_json([_plain(admitted) for admitted in taken])
        return
    for admitted in taken:
        print(f"pulled {admitted.manifest.name} {admitted.digest.short}, {size(admitted.manifest.size)}, {admitted.by}", file=sys.stderr)
        print(admitted.digest)


def _plain(admitted: Admitted) -> dict[str, Any]:
    return {"recipe": admitted.manifest.name, "digest": str(admitted.digest), "size": admitted.manifest.size, "trusted": admitted.by}
