"""The options that `build` and `bench` share, and the request they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from aot.choice import choice
from aot.recipes import find
from aot.request.compilation import on_machine
from aot.request.mode import COMBINATIONS, WORDS
from aot.request.options import DEFAULT_MODE, Options, option_of
from aot.request.recipe import Recipe
from aot.request.request import Request
from aot.request.shape import Shape

RecipeName: TypeAlias = Annotated[str, typer.Argument(help="Recipe, for example pixart-alpha.", metavar="RECIPE")]
Variant: TypeAlias = Annotated[str, typer.Option(help="Which row of the recipe: full, small or tiny.")]
Gpu: TypeAlias = Annotated[
    str, typer.Option(help="Machine to compile for: cpu, or a GPU by its name in `aot targets`. It need not be here.")
]
Shapes: TypeAlias = Annotated[
    list[str], typer.Option("--shape", help="HEIGHTxWIDTH in pixels; repeat for several sizes in one artifact.", metavar="HxW")
]
ShapeList: TypeAlias = Annotated[
    str, typer.Option("--shapes", help="A named list of sizes: `seed`, those that nexfort's own documents ran.", metavar="LIST")
]
Batches: TypeAlias = Annotated[list[int], typer.Option("--batch", help="Images or videos a call; may be repeated.", min=1)]
Guidance: TypeAlias = Annotated[str, typer.Option(help="Classifier-free guidance, which doubles the denoiser's batch: on, off or both.")]
Frames: TypeAlias = Annotated[list[int], typer.Option("--frames", help="Length of a video; default: the model's own.", min=1)]
Dynamic: TypeAlias = Annotated[bool, typer.Option("--dynamic", help="Graphs for every height and width, instead of one for each size.")]
ModeWords: TypeAlias = Annotated[
    str, typer.Option(help=f"Mode words joined by colons: {', '.join([*COMBINATIONS, *WORDS])}. Default: {DEFAULT_MODE}.", metavar="WORDS")
]
Untuned: TypeAlias = Annotated[
    bool,
    typer.Option("--untuned", help="Leave out what times kernels on the GPU: the mode's other words, with Inductor's default choices."),
]
Also: TypeAlias = Annotated[
    list[str], typer.Option("--also", help="A newer architecture to put in too, for example sm_90; may be repeated.", metavar="SM")
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
NoCacheLayer: TypeAlias = Annotated[bool, typer.Option("--no-cache-layer", help="Leave out what makes a fallback to torch.compile warm.")]
LoraRank: TypeAlias = Annotated[
    int,
    typer.Option("--lora-rank", help="Graphs with room for LoRAs that are loaded later: of this rank, all active ones together.", min=0),
]
Layout: TypeAlias = Annotated[
    str, typer.Option(help="spaces: with packages beside the graphs, which ZeroGPU Spaces load as they are.", metavar="spaces")
]
LoraTargets: TypeAlias = Annotated[
    str,
    typer.Option(
        "--lora-targets",
        help="Layers with room for LoRAs, by the ends of their paths, or `all`. Default: linear ones in blocks.",
        metavar="PATHS",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")]


def parse(
    recipe: str,
    *,
    variant: str,
    gpu: str,
    shapes: list[str],
    options: Options,
    shape_list: str = "",
    batches: Sequence[int] = (),
    guidance: str = "on",
    frames: Sequence[int] = (),
    dtype: str = "float32",
    scope: str = "whole",
    components: str = "",
    lora_rank: int = 0,
    lora_targets: str = "",
    layout: str = "",
    weights: str | None = None,
    fuse_qkv: bool = False,
    cache_layer: bool = True,
    untuned: bool = False,
    also: Sequence[str] = (),
    mode_given: bool = True,
    here: bool = True,
) -> tuple[Recipe, Request]:
    """The recipe and the checked request. `here`: whether the GPU is. Raises BadInput or Unsupported naming the option."""
    machine = on_machine(gpu, options, here=here, mode_given=mode_given, cache_layer=cache_layer, untuned=untuned, also=also)
    found = find(recipe)
    row = found.variant(variant)
    request = Request(
        recipe=found.name,
        variant=variant,
        shapes=tuple(dict.fromkeys([*map(Shape.parse, shapes), *_listed(shape_list, found)])) or (row.shape,),
        batches=tuple(dict.fromkeys(batches)) or (1,),
        guidance=guidance,
        frames=tuple(dict.fromkeys(frames)),
        dtype=dtype,
        scope=scope,
        components=listed(components),
        lora_rank=lora_rank,
        lora_targets=listed(lora_targets),
        layout=layout,
        weights=weights,
        fuse_qkv=fuse_qkv,
        **machine,
    )
    request.check(found)
    return found, request


def parse_options(mode: str, memory_format: str, given: list[str], *, dynamic: bool) -> Options:
    """Raises BadInput naming the option that is not NAME=VALUE, or not known."""
    options = dict(map(option_of, given))
    return Options.parse({"mode": mode or DEFAULT_MODE, "memory_format": memory_format, "dynamic": dynamic, "options": options})


def listed(text: str) -> tuple[str, ...]:
    """What commas part."""
    return tuple(dict.fromkeys(filter(None, text.split(","))))


def _listed(name: str, recipe: Recipe) -> tuple[Shape, ...]:
    return recipe.seed_shapes if name and choice(name, known=("seed",), field="--shapes") else ()


__all__ = ["parse", "parse_options"]
