"""`aot lookup`."""

from __future__ import annotations

from aot.cli import stores
from aot.cli.request import Json, RecipeName
from aot.cli.text import print_json, print_table, size


def lookup(
    recipe: RecipeName,
    store: stores.Location = "",
    gpu: stores.Gpu = "auto",
    mode: stores.ModeWords = "",
    variant: stores.Variant = "",
    allow_other_sku: stores.OtherSku = False,
    allow_other_torch: stores.OtherTorch = False,
    json: Json = False,
) -> None:
    """Tell what a store has of a recipe, and whether there is one for my machine: one request, and nothing is downloaded."""
    from aot.verbs.lookup import lookup as look_up

    found = look_up(recipe, store, gpu=gpu, mode=mode, variant=variant, allow=stores.allow(allow_other_sku, allow_other_torch))
    if json:
        print_json([{**offer.row.to_json(), "loads": not offer.refused, "refused": list(offer.refused)} for offer in found])
        return
    columns = (
        "device",
        "sku",
        "torch",
        "mode",
        "variant",
        "shapes",
        "size",
        "digest",
        "loads here" if gpu == "auto" else f"loads on {gpu}",
    )
    rows = []
    for offer in found:
        row = offer.row
        parts = (row.part("target.device"), row.part("target.sku"), row.part("target.torch"), row.mode, row.part("variant"), row.shapes)
        rows.append((*parts, size(row.entry.size), row.digest.short, "; ".join(offer.refused) or "yes"))
    print_table(columns, rows)
