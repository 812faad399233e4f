"""The options that `build` and `bench` share, and the request they come to."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from aot.errors import BadInput
from aot.mode import COMBINATIONS, WORDS
from aot.options import DEFAULT_MODE, Options
from aot.recipe import Recipe
from aot.request import Request
from aot.shape import Shape
from recipes import find

RecipeName: TypeAlias = Annotated[str, typer.Argument(help="Recipe, for example pixart-alpha.", metavar="RECIPE")]
Variant: TypeAlias = Annotated[str, typer.Option(help="Which row of the recipe: full, small or tiny.")]
Gpu: TypeAlias = Annotated[str, typer.Option(help="Machine to compile for; this version knows `cpu`.")]
Shapes: TypeAlias = Annotated[
    list[str], typer.Option("--shape", help="HEIGHTxWIDTH in pixels; repeat for several sizes in one artifact.", metavar="HxW")
]
ModeWords: TypeAlias = Annotated[
    str, typer.Option(help=f"Mode words joined by colons: {', '.join([*COMBINATIONS, *WORDS])}.", metavar="WORDS")
]
MemoryFormat: TypeAlias = Annotated[str, typer.Option(help="preserve or channels_last, for 4-d weights.")]
Option: TypeAlias = Annotated[
    list[str],
    typer.Option("--option", help="nexfort option, for example inductor.epilogue_fusion=false; may be repeated.", metavar="NAME=VALUE"),
]
Dtype: TypeAlias = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Scope: TypeAlias = Annotated[str, typer.Option(help="whole: one graph a component. regional: one a kind of repeated block.")]
Components: TypeAlias = Annotated[str, typer.Option(help="Only these, joined by commas.", metavar="PATHS")]
Weights: TypeAlias = Annotated[
    str | None, typer.Option(help="Folder or repository of real weights; default: seeded random ones.", metavar="PATH_OR_REPO")
]
FuseQkv: TypeAlias = Annotated[bool, typer.Option("--fuse-qkv", help="Fuse the denoiser's attention projections first.")]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]


def parse(
    recipe: str,
    *,
    variant: str,
    gpu: str,
    shapes: list[str],
    options: Options,
    dtype: str = "float32",
    scope: str = "whole",
    components: str = "",
    weights: str | None = None,
    fuse_qkv: bool = False,
    cache_layer: bool = True,
) -> tuple[Recipe, Request]:
    """The recipe and the checked request. Raises BadInput or Unsupported naming the option."""
    found = find(recipe)
    row = found.variant(variant)
    request = Request(
        recipe=found.name,
        variant=variant,
        shapes=tuple(dict.fromkeys(map(Shape.parse, shapes))) or (row.shape,),
        gpu=gpu,
        options=options,
        dtype=dtype,
        scope=scope,
        components=tuple(dict.fromkeys(filter(None, components.split(",")))),
        weights=weights,
        fuse_qkv=fuse_qkv,
        cache_layer=cache_layer,
    )
    request.check(found)
    return found, request


def parse_options(mode: str, memory_format: str, given: list[str]) -> Options:
    """Raises BadInput naming the option that is not NAME=VALUE, or not known."""
    return Options.parse({"mode": mode, "memory_format": memory_format, "options": dict(map(_pair, given))})


def _pair(text: str) -> tuple[str, bool | int | float | str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise BadInput(f"--option {text!r} is not NAME=VALUE.", remedy="for example --option inductor.epilogue_fusion=false.")
    if value in ("true", "false"):
        return name, value == "true"
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value


__all__ = ["DEFAULT_MODE", "parse", "parse_options"]
