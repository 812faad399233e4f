"""What `build` and `explain` are asked for: a checked request, and what it is built from where that is no recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aot.cli import request as asked
from aot.cli import source as of
from aot.errors import Unsupported
from aot.machine.device import is_here
from aot.request.compilation import on_machine
from aot.request.options import Options
from aot.request.recorded import Recorded
from aot.request.request import Request
from aot.verbs.source import Source


def wanted(
    what: str,
    *,
    gpu: str,
    options: Options,
    recipes_own: dict[str, Any],
    others_own: dict[str, Any],
    dtype: str = "",
    scope: str = "",
    components: str = "",
    lora_rank: int = 0,
    lora_targets: str = "",
    layout: str = "",
    cache_layer: bool = False,
    untuned: bool = False,
    also: Sequence[str] = (),
    mode_given: bool = True,
) -> tuple[Request | Recorded, Source | None]:
    """`recipes_own` are the options that only a recipe takes, `others_own` those that it does not, by name. Raises BadInput or
    Unsupported naming the option."""
    if of.is_source(what):
        name = others_own["--name"]
        source = of.source_of(
            what,
            gpu=gpu,
            calls=others_own["--call"],
            dtype=dtype,
            revision=others_own["--revision"],
            modules=others_own["--module"],
            name=name,
            recipes_own=recipes_own,
        )
        machine = on_machine(gpu, options, here=is_here(gpu), mode_given=mode_given, cache_layer=False, untuned=untuned, also=also)
        request = Recorded(
            name=name or source.own_name,
            scope=scope or "regional",
            components=asked.listed(components),
            lora_rank=lora_rank,
            lora_targets=asked.listed(lora_targets),
            layout=layout,
            **machine,
        )
        request.check_machine()
        return request, source
    if given := next((option for option, value in others_own.items() if value), None):
        raise Unsupported(f"{given}: a recipe has its own.", remedy="leave it out, or name a folder, a repository or a file.")
    _, found = asked.parse(
        what,
        variant=recipes_own["--variant"] or "full",
        gpu=gpu,
        shapes=recipes_own["--shape"],
        shape_list=recipes_own["--shapes"],
        batches=recipes_own["--batch"],
        guidance=recipes_own["--guidance"] or "on",
        frames=recipes_own["--frames"],
        options=options,
        dtype=dtype or "float32",
        scope=scope or "whole",
        components=components,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
        layout=layout,
        weights=recipes_own["--weights"],
        fuse_qkv=recipes_own["--fuse-qkv"],
        cache_layer=cache_layer,
        untuned=untuned,
        also=also,
        mode_given=mode_given,
        here=is_here(gpu),
    )
    return found, None
