"""`aot build`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aot.cli import request as asked
from aot.cli.text import found_cubins, print_json, progress, size
from aot.machine.device import is_here
from aot.machine.sku import find_sku

if TYPE_CHECKING:
    from aot.request.request import Request


def build(
    recipe: asked.RecipeName,
    gpu: asked.Gpu,
    variant: asked.Variant = "full",
    shape: asked.Shapes = [],
    shapes: asked.ShapeList = "",
    dynamic: asked.Dynamic = False,
    batch: asked.Batches = [],
    guidance: asked.Guidance = "on",
    frames: asked.Frames = [],
    mode: asked.ModeWords = "",
    untuned: asked.Untuned = False,
    also: asked.Also = [],
    memory_format: asked.MemoryFormat = "preserve",
    option: asked.Option = [],
    dtype: asked.Dtype = "float32",
    scope: asked.Scope = "whole",
    components: asked.Components = "",
    weights: asked.Weights = None,
    fuse_qkv: asked.FuseQkv = False,
    no_cache_layer: asked.NoCacheLayer = False,
    torch: Annotated[
        str, typer.Option(help="Compile with this version of torch, in an environment of its own that uv makes.", metavar="VERSION")
    ] = "",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again although the artifact is there.")] = False,
    json: asked.Json = False,
) -> None:
    """Compile a recipe for one machine type into an artifact of the local store."""
    _, request = asked.parse(
        recipe,
        variant=variant,
        gpu=gpu,
        shapes=shape,
        shape_list=shapes,
        batches=batch,
        guidance=guidance,
        frames=frames,
        options=asked.parse_options(mode, memory_format, option, dynamic=dynamic),
        dtype=dtype,
        scope=scope,
        components=components,
        weights=weights,
        fuse_qkv=fuse_qkv,
        cache_layer=not no_cache_layer,
        untuned=untuned,
        also=also,
        mode_given=bool(mode),
        here=is_here(gpu),
    )
    if request.simulate:
        _say_simulated(request)
    from aot.building.build import build as build_artifact
    from aot.building.build import check_host
    from aot.cache_store.local import LocalStore
    from aot.cache_store.root import default_root
    from aot.compiler.isolated import interpreter

    root = default_root(os.environ)
    with progress() as show:
        compiled_by = interpreter(torch, root, progress=show, environ=os.environ) if torch else None
        check_host(request, os.environ, compiled_by)
        store = LocalStore(root)
        built = build_artifact(request, store, progress=show, environ=os.environ, rebuild=rebuild, interpreter=compiled_by)
    result: dict[str, Any] = {
        "ref": str(built.ref),
        "digest": str(built.digest),
        "fresh": built.fresh,
        "size": built.manifest.size,
        "layers": {layer.kind: layer.size for layer in built.manifest.layers},
        "measured": built.manifest.measured,
        "certificate": built.manifest.certificate,
        "cubins": found_cubins(built.manifest),
        "log": str(built.log),
    }
    if json:
        print_json(result)
        return
    said = "built" if built.fresh else "is there already (build again with --rebuild):"
    print(f"{said} {built.ref.name} key {built.ref.key.short} digest {built.digest.short}, {size(built.manifest.size)}", file=sys.stderr)
    print(built.digest)


def _say_simulated(request: Request) -> None:
    name = find_sku(request.gpu).name
    tuning = " Kernels are Inductor's default choices, not timed (--untuned)." if request.untuned else ""
    print(f"There is no {name} here: compiling for it without running anything.{tuning}", file=sys.stderr)
