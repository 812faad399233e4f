"""`aot explain`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from aot.cli import request as asked
from aot.cli import source as of
from aot.cli.text import print_json, print_table, progress
from aot.cli.wanted import wanted
from aot.machine.device import gpus_here
from aot.machine.sku import CPU
from aot.verbs.stores import local_store

if TYPE_CHECKING:
    from aot.verbs.explain import Explained

_SHOWN = 5


def explain(
    what: of.What,
    gpu: Annotated[str, typer.Option(help="For which machine: auto (this one), cpu, or a name of `aot targets`.")] = "auto",
    variant: asked.Variant = "",
    shape: asked.Shapes = [],
    call: of.Calls = [],
    revision: of.Revision = "",
    module: of.Modules = [],
    mode: asked.ModeWords = "",
    memory_format: asked.MemoryFormat = "preserve",
    option: asked.Option = [],
    dtype: of.Dtype = "",
    scope: of.Scope = "",
    fuse_qkv: asked.FuseQkv = False,
    every: Annotated[bool, typer.Option("--all", help="All artifacts of such a model, not the nearest alone.")] = False,
    json: asked.Json = False,
) -> None:
    """Say what would serve a pipeline, and what stands in the way: what is asked for against the artifacts of the local store.

    Part by part: blocking, degrading or harmless. Nothing is compiled or loaded.
    """
    from aot.building.build import plan
    from aot.verbs.explain import explain as explained

    own = {"--variant": variant, "--shape": shape, "--shapes": "", "--batch": [], "--guidance": "", "--frames": [], "--weights": None}
    request, source = wanted(
        what,
        gpu=next(iter(gpus_here()), CPU) if gpu == "auto" else gpu,
        options=asked.parse_options(mode, memory_format, option, dynamic=False),
        recipes_own={**own, "--fuse-qkv": fuse_qkv},
        others_own={"--call": call, "--revision": revision, "--module": module, "--name": ""},
        dtype=dtype,
        scope=scope,
        mode_given=bool(mode),
    )
    store = local_store()
    with progress() as show:
        planned = plan(request, store, source=source, progress=show, environ=os.environ)
    found = explained(planned.key, store)
    if json:
        print_json([{**asdict(one), "blocking": one.blocking} for one in found])
        return
    shown = found if every else found[:_SHOWN]
    for one in shown:
        _print(one)
    more = f", the nearest {len(shown)} shown (--all)" if len(shown) < len(found) else ""
    served = dict.fromkeys(path for one in found for path in one.serves)
    said = f"{', '.join(served)} would be served" if served else "nothing would be served"
    print(f"{len(found)} artifacts of such a model{more}; {said}", file=sys.stderr)


def _print(one: Explained) -> None:
    print(f"{one.name}: {'serves ' + ', '.join(one.serves) if one.serves else 'serves nothing of it'}")
    rows = [(f"  {part.name}", part.built or "-", part.asked or "-", part.weight, part.why) for part in one.parts]
    if rows:
        print_table(("  part", "built for", "asked for", "is", "why"), rows)
