"""`aot lock`."""

from __future__ import annotations

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
    from aot.verbs.lookup import lock as pin_artifacts

    if not source and "/" not in recipe:
        raise BadInput("lock needs --from STORE, or a store of one name.", remedy="aot lock pixart-alpha --from hf://acme/artifacts")
    allow = stores.allow(allow_other_sku, allow_other_torch)
    pins = pin_artifacts(recipe, source, gpu=gpu, mode=mode, variant=variant, all=all, allow=allow, say=stores.say)
    if json:
        print_json([{"recipe": pin.ref.name, "digest": str(pin.digest), "store": pin.store} for pin in pins])
        return
    for pin in pins:
        print(pin.digest)
