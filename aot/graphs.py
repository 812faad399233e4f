"""Graphs: what a build's own processes do. Compile a plan's units, check them against eager, fill a cache directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from aot.book import FILE, Book, GraphEntry, Kind
from aot.capture import Call, in_dtype
from aot.certificate import check, compare, tolerance
from aot.dispatch import OnMiss, Policy
from aot.inductor import check_options, compile_graph, jit
from aot.ledger import Ledger
from aot.load import forward_of, put, sites, take_away
from aot.plan import Plan, make_plan
from aot.process import Parent
from aot.recipe import Recipe
from aot.request import Request
from aot.runner import Graph
from aot.settings import claim, complete
from aot.weights import LiveWeights
from cache_store.digest import Digest

Measured: TypeAlias = dict[str, Any]


def compile_artifact(recipe: Recipe, request: Request, directory: Path, parent: Parent) -> None:
    """Fill `directory` with the files of the graph layer. The parent hears the key first and answers whether to go on."""
    with _stage(parent, "capture the pipeline's calls"):
        check_options(request.options)
        claim("this build", complete(request.options.process))
        plan = make_plan(recipe, request)
    parent.tell("key", parts=dict(plan.key.parts), units=list(map(str, plan.units)))
    if parent.receive() != "go":
        return
    measured: Measured = {"compile_s": {}}
    book, graphs = _compile(plan, request, directory, parent, measured)
    (directory / FILE).write_bytes(book.encode())
    with _stage(parent, "check against eager"):
        allowed = tolerance(request.options.mode, request.dtype)
        certificate = check_graphs(plan, book, graphs, allowed=allowed, measured=measured)
    parent.tell("done", measured=measured, certificate=certificate)


def fill_cache(recipe: Recipe, request: Request, parent: Parent) -> None:
    """Run every call asked for through torch.compile once; TORCHINDUCTOR_CACHE_DIR is then the cache layer's content.

    Compiled are the same submodules that the graphs are about: what a dispatcher falls back to must be what is warm.
    """
    claim("this build", complete(request.options.process))
    plan = make_plan(recipe, request)
    for site in plan.sites():
        put(site, jit(forward_of(site), request.options))
    for call in plan.calls:
        with _stage(parent, f"torch.compile {call.component} for the cache layer"), torch.inference_mode():
            _timed(plan, call)
    parent.tell("done")


def _compile(plan: Plan, request: Request, directory: Path, parent: Parent, measured: Measured) -> tuple[Book, list[Graph]]:
    entries, kinds = [], dict[Digest, Kind]()
    for number, unit in enumerate(plan.units):
        with _stage(parent, f"compile {unit} ({number + 1} of {len(plan.units)})") as stage:
            file = f"{unit.component}-{number}.so"
            module, fingerprint = plan.kinds[unit.kind]
            frozen = request.options.mode.freezing
            with in_dtype(module, unit.dtype):
                library = directory / file
                outputs = compile_graph(module, unit.signature, dynamic=unit.dynamic, options=request.options, library=library)
                kinds[unit.kind] = Kind(fingerprint, () if frozen else _weights(module))
            entries.append(GraphEntry(unit.component, unit.paths, unit.kind, file, unit.signature, outputs, unit.dynamic, frozen))
        measured["compile_s"][file] = stage["seconds"]
    components = {path: fingerprint.digest for path, fingerprint in plan.fingerprints.items()}
    for fingerprint in plan.fingerprints.values():  # in regional scope no graph is of a component's kind: kept to explain a miss
        kinds.setdefault(fingerprint.digest, Kind(fingerprint))
    return Book(tuple(entries), components, kinds), [Graph(entry, directory / entry.file) for entry in entries]


def _weights(module: torch.nn.Module) -> tuple[tuple[str, Any], ...]:
    weights = LiveWeights(module)
    return tuple(zip(weights.names, weights.specs(), strict=True))


def check_graphs(plan: Plan, book: Book, graphs: list[Graph], *, allowed: float, measured: Measured) -> dict[str, Any]:
    """Compare each component, run through its graphs exactly as it will be when loaded, with eager. Raises OutsideTolerance.

    All of eager comes first: a graph left in place would be compared with itself.
    """
    calls = [*plan.calls, *plan.checks]
    with torch.inference_mode():
        eager = [_timed(plan, call) for call in calls]
        for (name, _), site in sites(book, graphs, plan.modules).items():
            site.serve(Policy(name, "cpu", OnMiss.ERROR, lambda function: function, Ledger()))
        try:
            served = [_timed(plan, call) for call in calls]
        finally:
            for module in plan.modules.values():
                take_away(module)
    names = list(map(str, calls))
    measured["eager_first_call_s"] = dict(zip(names, (seconds for _, seconds in eager), strict=True))
    measured["graph_first_call_s"] = dict(zip(names, (seconds for _, seconds in served), strict=True))
    comparisons = [compare(got, expected) for (got, _), (expected, _) in zip(served, eager, strict=True)]
    for name, comparison in zip(names, comparisons, strict=True):
        check(comparison, what=name, allowed=allowed)
    compared = [{"call": name, **comparison.to_json()} for name, comparison in zip(names, comparisons, strict=True)]
    return {"tolerance_relative_l2": allowed, "calls": compared}


def _timed(plan: Plan, call: Call) -> tuple[Any, float]:
    args, kwargs = call.signature.call(call.tensors)
    module = plan.modules[call.component]
    with in_dtype(module, call.dtype):
        started = time.perf_counter()
        returned = module(*args, **kwargs)
        return returned, round(time.perf_counter() - started, 4)


@contextmanager
def _stage(parent: Parent, what: str) -> Iterator[dict[str, float]]:
    """Tell the parent what begins; on success the yielded dict gets `seconds`."""
    parent.tell("stage", what=what)
    started, result = time.perf_counter(), dict[str, float]()
    yield result
    result["seconds"] = round(time.perf_counter() - started, 3)
