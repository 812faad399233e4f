"""`aot bench`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aot.benchmark.measurement import BEFORE, COMPARED, WARMED_BY, WAYS, Measurement, Way
from aot.choice import choice
from aot.cli import request as asked
from aot.cli.text import print_json, print_table, progress, size
from aot.errors import BadInput, Unsupported
from aot.machine.device import is_here
from aot.machine.sku import find_sku
from aot.verbs.stores import local_store

if TYPE_CHECKING:
    from aot.benchmark.bench import StartupLedger


def bench(
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
    memory_format: asked.MemoryFormat = "preserve",
    option: asked.Option = [],
    dtype: asked.Dtype = "float32",
    scope: asked.Scope = "whole",
    components: asked.Components = "",
    weights: asked.Weights = None,
    fuse_qkv: asked.FuseQkv = False,
    no_cache_layer: asked.NoCacheLayer = False,
    steps: Annotated[int, typer.Option(help="Denoising steps of the whole-pipeline figures; 0: the variant's own.")] = 0,
    ways: Annotated[str, typer.Option(help=f"Which of {', '.join(WAYS)} to measure, joined by commas.")] = ",".join(WAYS),
    rounds: Annotated[int, typer.Option(help="Rounds of steady-state calls, interleaved between the ways.", min=1)] = 5,
    html: Annotated[Path | None, typer.Option(help="Write a self-contained page with the ledger as bars.", metavar="FILE")] = None,
    json: asked.Json = False,
) -> None:
    """Measure start-up eager, compiled cold, compiled with a warm directory and loaded from the artifact (built if absent)."""
    found, request = asked.parse(
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
        mode_given=bool(mode),
        here=is_here(gpu),
    )
    if request.simulate:
        raise Unsupported(
            f"there is no {find_sku(gpu).name} here to measure.", remedy="`aot build` compiles for it; run `aot bench` where it is."
        )
    least = max(found.min_steps, 2)  # iterations per second are counted between steps
    if steps and steps < least:
        raise BadInput(f"--steps {steps} is too few for {recipe}.", remedy=f"give at least {least}.")
    if html and not html.parent.is_dir():
        raise BadInput(f"--html {str(html)!r}: there is no folder {str(html.parent)!r}.", remedy="make it, or name another file.")
    plan = Measurement(steps or found.variant(variant).steps, rounds, _ways(ways))
    from aot.benchmark.bench import bench as run_bench
    from aot.benchmark.report import page
    from aot.building.build import check_host

    check_host(request, os.environ)
    store = local_store()
    with progress() as show:
        ledger = run_bench(request, store, plan=plan, progress=show, environ=os.environ)
    if html:
        html.write_text(page(ledger))
        print(f"wrote {html}", file=sys.stderr)
    if json:
        print_json(ledger.to_json())
    else:
        print_ledger(ledger)


def _ways(text: str) -> tuple[Way, ...]:
    """Always eager and the artifact too: without them there is nothing to compare."""
    asked = {*(Way(choice(way, known=WAYS, field="--ways")) for way in text.split(",")), *COMPARED}
    asked.update(cold for warm, cold in WARMED_BY.items() if warm in asked)
    return tuple(way for way in WAYS if way in asked)


def print_ledger(ledger: StartupLedger) -> None:
    """The ledger as tables on stdout."""
    machine = ledger.machine
    print(
        f"{ledger.request.recipe} {ledger.request.variant}, {machine['target']}, {machine['cores']} cores; artifact {size(ledger.size)}\n"
    )
    parts = ("find", "verify", "materialise", "compare", "load")
    print_table(
        ("way", "start-up s", *parts, "first calls", "steady ms", "it/s", "E2E s", "peak memory", "relative L2 to eager"),
        [
            (
                account.way,
                f"{account.startup_s:.3f}",
                *(f"{account.parts_s[part]:.4f}" if part in account.parts_s else "-" for part in parts),
                f"{sum(account.first_call_s):.3f}",
                f"{1000 * sum(account.steady_s):.1f}",
                f"{account.iterations_per_s:.2f}",
                f"{account.pipeline_s:.2f}",
                size(account.max_memory),
                f"{account.against_eager['relative_l2']:.1e}",
            )
            for account in ledger.accounts.values()
        ],
    )
    print()
    print_table(
        ("from `python` to the picture", *BEFORE, "start-up", "picture", "all, seconds"),
        [
            (
                way,
                *(f"{account.before_s[part]:.2f}" for part in BEFORE),
                f"{account.startup_s:.2f}",
                f"{account.pipeline_first_s:.2f}",
                f"{account.line_s:.2f}",
            )
            for way, account in ledger.accounts.items()
        ],
    )
    print()
    print_table(("ratio, this run", "value"), [(name, f"{value:.4g}") for name, value in ledger.ratios().items()])
    print()
    print_table(("as nexfort's tables", f"{ledger.request.shapes[0]}"), ledger.seed_rows())
