"""`aot lock`."""

from __future__ import annotations

import os
import sys

from aot.cli import stores
from aot.cli.request import Json, RecipeName
from aot.cli.text import print_json
from aot.errors import BadInput


def lock(
    recipe: RecipeName,
    source: stores.From = "",
    gpu: stores.Gpu = "auto",
    mode: stores.ModeWords = "",
    variant: stores.Variant = "",
    all: stores.Every = False,
    allow_other_sku: stores.OtherSku = False,
    allow_other_torch: stores.OtherTorch = False,
    json: Json = False,
) -> None:
    """Pin the best artifact for a machine by digest and commit in aot.lock (or the file that AOT_LOCK names).

    A pin is trust: these very bytes are loaded from then on, whoever signed them. Keep the file in version control.
    """
    from aot.cache_store.errors import Corrupt
    from aot.cache_store.lock import Lock, Pin, lock_file
    from aot.cache_store.store import Ref, read_manifest
    from aot.shipping.offer import Wanted

    if not source:
        raise BadInput("lock needs --from STORE.", remedy="aot lock pixart-alpha --from hf://acme/artifacts")
    store = stores.open_remote(source)
    wanted = Wanted(recipe, mode, variant, stores.allowed(allow_other_sku, allow_other_torch))
    chosen = stores.choose(stores.ask(store, wanted, gpu), every=all)
    pins = []
    for offer in chosen if all else chosen[:1]:
        row = offer.row
        manifest = read_manifest(store, row.digest)
        if Ref.of(manifest) != row.ref or manifest.key != row.entry.key:
            raise Corrupt(
                f"{store.location} lists {row.digest.short} as what its manifest is not.", remedy="ask its owner; pin nothing of it."
            )
        pins.append(Pin(str(store), row.ref, row.digest, {"target": row.target, "mode": row.mode, "shapes": row.shapes}))
    path = lock_file(os.environ)
    Lock.read(path).pin(pins).write(path)
    print(f"pinned in {path}; commit that file", file=sys.stderr)
    if json:
        print_json([{"recipe": pin.ref.name, "digest": str(pin.digest), "store": pin.store} for pin in pins])
        return
    for pin in pins:
        print(pin.digest)
