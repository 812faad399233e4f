"""`aot recipes`."""

from __future__ import annotations

from typing import Any

from aot.cli.request import Json
from aot.cli.text import print_json, print_records
from aot.recipes import RECIPES
from aot.recipes.rows import FAMILIES, Family
from aot.request.compilation import SCOPES
from aot.request.mode import COMBINATIONS, WORDS
from aot.request.recipe import Recipe


def recipes(json: Json = False) -> None:
    """List the recipes: components, divisors, scopes, modes, whether fuse_qkv applies, and the rows of each."""
    rows = list(map(_row, RECIPES.values()))
    if json:
        print_json([*rows, *map(_published, FAMILIES.values())])
        return
    print_records(
        ("recipe", "about", "components", "divisor", "dynamic graphs", "scopes", "modes", "fuse_qkv", "variants", "--shapes seed"),
        [
            (
                row["recipe"],
                row["about"],
                " ".join(item["path"] + ("?" if item["optional"] else "") for item in row["components"]),
                str(row["divisor"]),
                "; ".join(f"{item['path']}: multiples of {', '.join(item['buckets'])}" for item in row["components"] if item["varies"]),
                " ".join(row["scopes"]),
                " ".join(row["modes"]),
                "yes" if row["fuse_qkv"] else "no",
                " ".join(f"{variant['variant']}({_size(variant)})" for variant in row["variants"]),
                " ".join(row["seed_shapes"]),
            )
            for row in rows
        ],
    )
    print_records(
        ("recipe", "about", "pipeline", "variants"),
        [(family.name, family.about, family.pipeline, " ".join(family.rows)) for family in FAMILIES.values()],
    )


def _published(family: Family) -> dict[str, Any]:
    variants = [{"variant": name, "call": dict(row.call), "parts": list(row.parts)} for name, row in family.rows.items()]
    return {"recipe": family.name, "about": family.about, "pipeline": family.pipeline, "variants": variants}


def _row(recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "components": [
            {
                "path": item.path,
                "optional": item.optional,
                "blocks": list(item.blocks),
                "buckets": list(map(str, recipe.buckets(item))),
                "varies": "encoder" not in item.path,
            }
            for item in recipe.components
        ],
        "divisor": recipe.divisor,
        "scopes": list(SCOPES),
        "modes": [*COMBINATIONS, *(f"{name}({word.device})" if word.device else name for name, word in WORDS.items())],
        "fuse_qkv": recipe.fuse_qkv,
        "variants": [
            {"variant": name, "about": row.about, "shape": str(row.shape), "steps": row.steps, "frames": row.frames}
            for name, row in recipe.variants.items()
        ],
        "seed_shapes": list(map(str, recipe.seed_shapes)),
    }


def _size(variant: dict[str, Any]) -> str:
    return f"{variant['shape']}x{variant['frames']}" if variant["frames"] else variant["shape"]
