"""Build and plan: any pipeline, or module, from calls of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from aot.building.build import Built, Planned, Source, check_host
from aot.building.build import build as build_artifact
from aot.building.build import plan as plan_artifact
from aot.compiler.stage import Progress, Stage
from aot.errors import BadInput
from aot.machine.device import gpus_here, is_here
from aot.machine.sku import CPU
from aot.request.compilation import on_machine
from aot.request.options import Options
from aot.request.recipe_file import RecipeFile
from aot.request.record import Record, record
from aot.request.recorded import Recorded
from aot.request.saved import Saved
from aot.verbs.source import Source as Named
from aot.verbs.source import kind_of, source_of
from aot.verbs.stores import local_store

Call = Callable[[Any], Any]


def build(
    what: Any,
    call: Call | dict[str, Any] | Iterable[Call | dict[str, Any]] | None = None,
    *,
    gpu: str = "",
    options: Options | dict[str, Any] | str | None = None,
    scope: str = "regional",
    components: Collection[str] = (),
    name: str = "",
    dtype: torch.dtype | None = None,
    axes: bool = False,
    lora_rank: int = 0,
    lora_targets: Collection[str] = (),
    layout: str = "",
    cache_layer: bool = False,
    untuned: bool = False,
    also: Collection[str] = (),
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Built:
    """Compile what `call` (a function of the pipeline, or several) calls of the diffusers pipeline or module `what`, into an
    artifact of the local store. `what` may also be a Record, or the file of one; or the folder or repository of a pipeline, of which
    the configs are enough, or a row of `aot recipes`: `call` is then the arguments of a call, as a dict, or several such.

    `gpu` is the machine to compile for, `cpu` or a name of `aot targets`, by default what the modules are on; it need not be
    here. `options` are those of `compile`. `scope`: `regional`, one graph for each kind of repeated block, or `whole`, one a
    component. `components` are the paths compiled, by default all that were called. `name` is the artifact's, by default that of
    the pipeline's class. `dtype` is that of the weights, of a folder or repository; by default float32, as diffusers loads them.
    With `axes` sizes that differ between calls are left open, and one graph serves them and all between; else each has its own.
    With `lora_rank` the graphs have room for LoRAs, which diffusers' own methods load, weigh, disable and swap later without a
    compile: of that rank, all active ones of a layer together. `lora_targets` are the layers that have room, by the ends of their
    paths, as `to_q`, or `all`; by default the linear ones and 1x1 convolutions within blocks.
    `layout`: `spaces` puts packages beside the graphs, which ZeroGPU Spaces load as they are once pushed to a repository of the Hub.
    `cache_layer` makes a fallback to torch.compile warm too, at the price of a second compilation.
    `progress` is told of each stage.

    Nothing of `what` is changed, and no weight is read: what is compiled is compared with eager on noise. Raises BadInput and
    Unsupported for what cannot be built, BadEnvironment for a host that cannot build, BuildFailed, OutsideTolerance.
    """
    request, source = _asked(
        what,
        call,
        gpu=gpu,
        options=options,
        scope=scope,
        components=components,
        name=name,
        dtype=dtype,
        axes=axes,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
        layout=layout,
        cache_layer=cache_layer,
        untuned=untuned,
        also=also,
    )
    check_host(request, os.environ)
    return build_artifact(request, local_store(), source=source, progress=progress or _quiet, environ=os.environ, rebuild=rebuild)


def plan(
    what: Any,
    call: Call | dict[str, Any] | Iterable[Call | dict[str, Any]] | None = None,
    *,
    gpu: str = "",
    options: Options | dict[str, Any] | str | None = None,
    scope: str = "regional",
    components: Collection[str] = (),
    name: str = "",
    dtype: torch.dtype | None = None,
    axes: bool = False,
    lora_rank: int = 0,
    lora_targets: Collection[str] = (),
    layout: str = "",
    untuned: bool = False,
    also: Collection[str] = (),
    progress: Progress | None = None,
) -> Planned:
    """What `build` of the same would compile, whether the store has it, and what it took before. Nothing is compiled or stored."""
    request, source = _asked(
        what,
        call,
        gpu=gpu,
        options=options,
        scope=scope,
        components=components,
        name=name,
        dtype=dtype,
        axes=axes,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
        layout=layout,
        cache_layer=False,
        untuned=untuned,
        also=also,
    )
    return plan_artifact(request, local_store(), source=source, progress=progress or _quiet, environ=os.environ)


def _asked(
    what: Any,
    call: Any,
    *,
    gpu: str,
    options: Any,
    scope: str,
    components: Collection[str],
    name: str,
    dtype: torch.dtype | None,
    axes: bool,
    lora_rank: int,
    lora_targets: Collection[str],
    layout: str,
    cache_layer: bool,
    untuned: bool,
    also: Collection[str],
) -> tuple[Recorded, Source]:
    """The checked request, and what it is built from."""
    source = _source(what, call, name, dtype)
    source.check()
    gpu, parsed = gpu or _device_of(source), Options.parse(options)
    parsed = replace(parsed, dynamic=parsed.dynamic or axes)
    given = "mode" in options if isinstance(options, str | dict) else isinstance(options, Options) and options.mode != Options().mode
    machine = on_machine(gpu, parsed, here=is_here(gpu), mode_given=given, cache_layer=cache_layer, untuned=untuned, also=also)
    own = source.name if isinstance(source, Record) else source.own_name
    request = Recorded(
        name=name or own,
        scope=scope,
        components=tuple(components),
        lora_rank=lora_rank,
        lora_targets=tuple(lora_targets),
        layout=layout,
        **machine,
    )
    request.check_machine()
    return request, source


def _source(what: Any, call: Any, name: str, dtype: torch.dtype | None) -> Record | Named:
    if not isinstance(what, str | Path):
        return _recorded(what, call, name)
    if kind_of(str(what)) in (Saved, RecipeFile) and call is not None:
        raise _two_calls()
    calls = [] if call is None else [call] if isinstance(call, dict) else list(call)
    return source_of(str(what), calls=calls, dtype=str(dtype or torch.float32).removeprefix("torch."), name=name)


def _recorded(what: Any, call: Call | Iterable[Call] | None, name: str) -> Record:
    if isinstance(what, Record):
        if call is not None:
            raise _two_calls()
        return what
    if call is None:
        raise BadInput(
            f"no call of the {type(what).__name__} was given.",
            remedy="for example aot.build(pipe, lambda pipe: pipe('a cat', height=1024, width=1024)).",
        )
    with record(what, name=name) as found, torch.no_grad():
        for each in [call] if callable(call) else call:
            each(what)
    return found


def _two_calls() -> BadInput:
    return BadInput("a Record holds its calls, and another was given beside it.", remedy="leave the call out, or record it too.")


def _device_of(source: Record | Named) -> str:
    """What the recorded modules are on, as `gpu` is written; this machine's GPU for what is on nothing."""
    if not isinstance(source, Record):
        return next(iter(gpus_here()), CPU)
    kinds = {weight.device.type for module in source.modules.values() for weight in module.parameters()}
    return next(iter(gpus_here()), CPU) if "cuda" in kinds else CPU


def _quiet(_: Stage) -> None:
    """Nobody is told."""
