"""`aot check`."""

from __future__ import annotations

from typing import Annotated

import typer

from aot.cli.request import Json
from aot.cli.stores import allow
from aot.cli.text import print_json, print_table
from aot.errors import Miss
from aot.machine.fit import built_for
from aot.machine.target import Allow, Difference, Target
from aot.verbs.stores import allowed, local_store, machine, open_guard


def check(
    artifact: Annotated[str, typer.Argument(help="Recipe, recipe@key, or the beginning of a key or digest.")],
    gpu: Annotated[str, typer.Option(help="For which machine: auto (this one), or a name of `aot targets`.")] = "auto",
    allow_other_sku: Annotated[
        bool, typer.Option("--allow-other-sku", help="Take one tuned for another of the same architecture.")
    ] = False,
    allow_other_torch: Annotated[
        bool,
        typer.Option("--allow-other-torch", help="Take another torch's, if a process of its own reproduces its golden outputs."),
    ] = False,
    json: Json = False,
) -> None:
    """Say whether an artifact would be loaded on this machine: each field that differs, and what that comes to."""
    from aot.shipping.listing import listing, pick

    store = local_store()
    row, *_ = pick(listing(store), artifact)
    built = Target.of_parts(row.entry.key)
    here = machine(gpu, built)
    found = built_for(row.entry.key, here)
    refused = [one for one in found if one.refused(allowed(allow(allow_other_sku, allow_other_torch)))]
    error = None
    if gpu == "auto" and not refused and any(one.allow is Allow.TORCH for one in found):  # on another machine it is sent there
        from aot.serving.canary import send

        guard = open_guard(store)
        error = send(store, guard.admit(store, row.digest), here=here, guard=guard)
    if json:
        differences = [{"field": one.field, "built": one.built, "here": one.here, "is": one.weight, "why": one.why} for one in found]
        print_json({"built": str(built), "here": str(here), "differences": differences, "loads": not refused, "canary_error": error})
    else:
        _print(built, gpu, found, error)
    if refused:
        raise Miss(f"it is not loaded here: {'; '.join(map(str, refused))}.", remedy=_remedy(refused))


def _print(built: Target, gpu: str, found: list[Difference], error: float | None) -> None:
    where = "this machine" if gpu == "auto" else gpu
    if not found:
        print(f"{built}: fits {where}")
    else:
        print(f"built for {built}\n")
        print_table(("field", "built for", "here", "is", "why"), [(one.field, one.built, one.here, one.weight, one.why) for one in found])
    if error is not None:
        print(f"the canary came back: relative L2 error {error:.1e} against the golden outputs")


def _remedy(refused: list[Difference]) -> str:
    options = [f"--allow-{one.allow}" for one in refused if one.allow]
    if len(options) == len(refused):
        return f"{' '.join(dict.fromkeys(options))}, in Python allow=(...); or build it for this machine."
    return "build it for this machine: `aot build --gpu`; `aot targets --here` says what it is."
