"""`aot build`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aot.cli import request as asked
from aot.cli import source as of
from aot.cli.text import found_cubins, print_json, print_table, progress, size
from aot.cli.wanted import wanted
from aot.machine.sku import find_sku

if TYPE_CHECKING:
    from aot.building.build import Planned
    from aot.request.recorded import Recorded
    from aot.request.request import Request


def build(
    what: of.What,
    gpu: asked.Gpu,
    variant: asked.Variant = "",
    shape: asked.Shapes = [],
    shapes: asked.ShapeList = "",
    dynamic: asked.Dynamic = False,
    batch: asked.Batches = [],
    guidance: asked.Guidance = "",
    frames: asked.Frames = [],
    call: of.Calls = [],
    revision: of.Revision = "",
    module: of.Modules = [],
    name: of.Name = "",
    mode: asked.ModeWords = "",
    untuned: asked.Untuned = False,
    also: asked.Also = [],
    memory_format: asked.MemoryFormat = "preserve",
    option: asked.Option = [],
    dtype: of.Dtype = "",
    scope: of.Scope = "",
    components: asked.Components = "",
    lora_rank: asked.LoraRank = 0,
    lora_targets: asked.LoraTargets = "",
    layout: asked.Layout = "",
    weights: asked.Weights = None,
    fuse_qkv: asked.FuseQkv = False,
    no_cache_layer: asked.NoCacheLayer = False,
    torch: Annotated[
        str, typer.Option(help="Compile with this version of torch, in an environment of its own that uv makes.", metavar="VERSION")
    ] = "",
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be compiled, and compile nothing.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build again although the artifact is there.")] = False,
    json: asked.Json = False,
) -> None:
    """Compile a recipe, a pipeline or a Record for one machine type into an artifact of the local store."""
    request, source = wanted(
        what,
        gpu=gpu,
        options=asked.parse_options(mode, memory_format, option, dynamic=dynamic),
        recipes_own={
            "--variant": variant,
            "--shape": shape,
            "--shapes": shapes,
            "--batch": batch,
            "--guidance": guidance,
            "--frames": frames,
            "--weights": weights,
            "--fuse-qkv": fuse_qkv,
        },
        others_own={"--call": call, "--revision": revision, "--module": module, "--name": name},
        dtype=dtype,
        scope=scope,
        components=components,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
        layout=layout,
        cache_layer=not no_cache_layer,
        untuned=untuned,
        also=also,
        mode_given=bool(mode),
    )
    if request.simulate:
        _say_simulated(request)
    from aot.building.build import build as build_artifact
    from aot.building.build import check_host
    from aot.building.build import plan as plan_artifact
    from aot.cache_store.local import LocalStore
    from aot.cache_store.root import default_root
    from aot.compiler.isolated import interpreter

    root = default_root(os.environ)
    with progress() as show:
        compiled_by = interpreter(torch, root, progress=show, environ=os.environ) if torch else None
        check_host(request, os.environ, compiled_by)
        store = LocalStore(root)
        if plan:
            _show_plan(plan_artifact(request, store, source=source, progress=show, environ=os.environ, interpreter=compiled_by), json)
            return
        built = build_artifact(request, store, source=source, progress=show, environ=os.environ, rebuild=rebuild, interpreter=compiled_by)
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
    for path, why in built.manifest.measured.get("left", {}).items():
        print(f"left as it is, uncompiled: {path}: {why}", file=sys.stderr)
    said = "built" if built.fresh else "is there already (build again with --rebuild):"
    print(f"{said} {built.ref.name} key {built.ref.key.short} digest {built.digest.short}, {size(built.manifest.size)}", file=sys.stderr)
    print(built.digest)


def _show_plan(plan: Planned, json: bool) -> None:
    rows = [(graph, plan.seconds.get(graph.split()[0])) for graph in plan.graphs]
    if json:
        graphs = [{"graph": graph, "expected_s": seconds} for graph, seconds in rows]
        print_json({"ref": str(plan.ref), "present": plan.present and str(plan.present), "graphs": graphs, "key": dict(plan.key.parts)})
        return
    print_table(("graph", "expected"), [(graph, "" if seconds is None else f"{seconds:.0f} s") for graph, seconds in rows])
    there = f"is there already: {plan.present.short}" if plan.present else "is not there yet"
    print(f"{plan.ref.name} key {plan.ref.key.short}, {len(rows)} graphs, {there}", file=sys.stderr)


def _say_simulated(request: Request | Recorded) -> None:
    name = find_sku(request.gpu).name
    tuning = " Kernels are Inductor's default choices, not timed (--untuned)." if request.untuned else ""
    print(f"There is no {name} here: compiling for it without running anything.{tuning}", file=sys.stderr)
