"""`aot targets`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from aot.cli.request import Json
from aot.cli.text import print_json, print_table, size
from aot.machine.sku import SKUS, Sku


def targets(
    here: Annotated[bool, typer.Option("--here", help="What this machine is, and where its GPU differs from its row.")] = False,
    json: Json = False,
) -> None:
    """List the GPUs that can be built for, or tell what this machine is."""
    if here:
        _here(json)
        return
    if json:
        print_json([_row(sku) for sku in SKUS.values()])
        return
    print_table(
        ("gpu", "name", "architecture", "multiprocessors", "memory", "L2 cache", "source"),
        [
            (sku.alias, sku.name, str(sku.architecture), str(sku.multiprocessors), f"{sku.memory} GiB", size(sku.l2_cache), sku.source)
            for sku in SKUS.values()
        ],
    )


def _row(sku: Sku) -> dict[str, Any]:
    return {"gpu": sku.alias, "architecture": str(sku.architecture), "properties": sku.properties(), "source": sku.source}


def _here(json: bool) -> None:
    from aot.machine.device import choose_ordinal, gpus_here, properties_here
    from aot.machine.target import Target

    found: list[dict[str, Any]] = [{"gpu": "cpu", "target": str(Target.named("cpu")), "row": None, "differs": []}]
    for ordinal, properties in enumerate(properties_here()):
        row = next((sku for sku in SKUS.values() if sku.name == properties["name"]), None)
        differs = [{"property": name, "row": mine, "here": theirs} for name, mine, theirs in (row.differs(properties) if row else [])]
        choose_ordinal("cuda", ordinal)
        target = str(Target.detect("cuda"))
        found.append({"gpu": row.alias if row else properties["name"], "target": target, "row": row and row.alias, "differs": differs})
    if json:
        print_json(found)
        return
    for item in found:
        print(f"{item['gpu']}\t{item['target']}")
        if item["gpu"] != "cpu" and item["row"] is None:
            print("  it has no row: nothing can be built for it; its properties, as a row of aot/sku.py, would change that")
        for difference in item["differs"]:
            print(f"  {difference['property']}: {difference['here']} here, {difference['row']} in its row")
    if len(found) == 1:
        said = "this torch sees none of the GPUs that are here" if gpus_here() else "there is no GPU here that a driver answers for"
        typer.echo(said, err=True)
