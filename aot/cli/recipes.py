"""`aot recipes`."""

from __future__ import annotations

from typing import Any

from aot.cli.request import Json
from aot.cli.text import print_json, print_records
from aot.recipes import RECIPES
from aot.recipes.row import Family
from aot.recipes.rows import FAMILIES
from aot.request.compilation import SCOPES
from aot.request.mode import COMBINATIONS, WORDS
from aot.request.recipe import Recipe


def recipes(json: Json = False) -> None:
    """List the recipes: components, divisors, scopes, modes, whether fuse_qkv applies, and the rows of each."""
    rows, published = list(map(_row, RECIPES.values())), list(map(_published, FAMILIES.values()))
    if json:
        print_json([*rows, *published])
        return
    print_records(_COLUMNS, [*map(_words, rows), *map(_words_of, published)])


_MODES = [*COMBINATIONS, *(f"{name}({word.device})" if word.device else name for name, word in WORDS.items())]
_COLUMNS = ("recipe", "about", "components", "divisor", "scopes", "modes", "fuse_qkv", "variants", "--shapes seed")


def _words(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["recipe"],
        row["about"],
        " ".join(item["path"] + ("?" if item["optional"] else "") for item in row["components"]),
        str(row["divisor"]),
        " ".join(row["scopes"]),
        " ".join(row["modes"]),
        "yes" if row["fuse_qkv"] else "no",
        " ".join(f"{variant['variant']}({_size(variant)})" for variant in row["variants"]),
        " ".join(row["seed_shapes"]),
    )


def _published(family: Family) -> dict[str, Any]:
    """A row of data: what it calls is found by watching it."""
    variants = [{"variant": name, "call": dict(row.call), "parts": list(row.parts)} for name, row in family.rows.items()]
    return {
        "recipe": family.name,
        "about": family.about,
        "pipeline": family.pipeline,
        "scopes": list(SCOPES),
        "modes": _MODES,
        "fuse_qkv": False,
        "variants": variants,
    }


def _words_of(row: dict[str, Any]) -> tuple[str, ...]:
    sizes = " ".join(f"{variant['variant']}({variant['call']['height']}x{variant['call']['width']})" for variant in row["variants"])
    return row["recipe"], row["about"], "all that it calls", "", " ".join(row["scopes"]), " ".join(row["modes"]), "no", sizes, ""


def _row(recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "about": recipe.about,
        "components": [{"path": item.path, "optional": item.optional} for item in recipe.components],
        "divisor": recipe.divisor,
        "scopes": list(SCOPES),
        "modes": _MODES,
        "fuse_qkv": recipe.fuse_qkv,
        "variants": [
            {"variant": name, "about": row.about, "shape": str(row.shape), "steps": row.steps, "frames": row.frames}
            for name, row in recipe.variants.items()
        ],
        "seed_shapes": list(map(str, recipe.seed_shapes)),
    }


def _size(variant: dict[str, Any]) -> str:
    return f"{variant['shape']}x{variant['frames']}" if variant["frames"] else variant["shape"]
