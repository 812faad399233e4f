"""Graphs: what a build's own processes do. Compile a plan's units, check them against eager, fill a cache directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch

from aot.book import FILE, Book, GraphEntry, Kind
from aot.capture import Call
from aot.certificate import check, compare, tolerance
from aot.dispatch import Dispatcher, OnMiss, Policy
from aot.inductor import check_options, compile_graph, jit
from aot.ledger import Ledger
from aot.load import forward_of, put, take_away
from aot.plan import Plan, make_plan
from aot.process import Parent
from aot.recipe import Recipe
from aot.request import Request
from aot.runner import Graph
from aot.weights import LiveWeights
from cache_store.digest import Digest

Measured: TypeAlias = dict[str, Any]


def compile_artifact(recipe: Recipe, request: Request, directory: Path, parent: Parent) -> None:
    """Fill `directory` with the files of the graph layer. The parent hears the key first and answers whether to go on."""
    with _stage(parent, "capture the pipeline's calls"):
        check_options(request.options)
        plan = make_plan(recipe, request)
    parent.tell("key", parts=dict(plan.key.parts), units=list(map(str, plan.units)))
    if parent.receive() != "go":
        return
    measured: Measured = {"compile_s": {}}
    book, graphs = _compile(plan, request, directory, parent, measured)
    (directory / FILE).write_bytes(book.encode())
    with _stage(parent, "check against eager"):
        allowed = tolerance(request.options.mode, request.dtype)
        certificate = check_graphs(plan, graphs, book.kinds, allowed=allowed, measured=measured)
    parent.tell("done", measured=measured, certificate=certificate)


def fill_cache(recipe: Recipe, request: Request, parent: Parent) -> None:
    """Run every call through torch.compile once; TORCHINDUCTOR_CACHE_DIR is then the cache layer's content.

    Compiled are the same submodules that the graphs are about: what a dispatcher falls back to must be what is warm.
    """
    plan = make_plan(recipe, request)
    for site in plan.sites():
        put(site, jit(forward_of(site), request.options))
    for call in plan.calls:
        with _stage(parent, f"torch.compile {call.component} for the cache layer"), torch.inference_mode():
            args, kwargs = call.signature.call(call.tensors)
            plan.modules[call.component](*args, **kwargs)
    parent.tell("done")


def _compile(plan: Plan, request: Request, directory: Path, parent: Parent, measured: Measured) -> tuple[Book, list[Graph]]:
    entries = []
    for number, unit in enumerate(plan.units):
        with _stage(parent, f"compile {unit} ({number + 1} of {len(plan.units)})") as stage:
            file = f"{unit.component}-{number}.so"
            module, _ = plan.kinds[unit.kind]
            outputs = compile_graph(module, unit.signature, options=request.options, library=directory / file)
            entries.append(GraphEntry(unit.component, unit.paths, unit.kind, file, unit.signature, outputs))
        measured["compile_s"][file] = stage["seconds"]
    kinds = {digest: Kind(fingerprint, _weights(module)) for digest, (module, fingerprint) in plan.kinds.items()}
    components = {path: fingerprint.digest for path, fingerprint in plan.fingerprints.items()}
    for fingerprint in plan.fingerprints.values():  # in regional scope no graph is of a component's kind: kept to explain a miss
        kinds.setdefault(fingerprint.digest, Kind(fingerprint))
    return Book(tuple(entries), components, kinds), [Graph(entry, directory / entry.file) for entry in entries]


def _weights(module: torch.nn.Module) -> tuple[tuple[str, Any], ...]:
    weights = LiveWeights(module)
    return tuple(zip(weights.names, weights.specs(), strict=True))


def check_graphs(plan: Plan, graphs: list[Graph], kinds: dict[Digest, Kind], *, allowed: float, measured: Measured) -> dict[str, Any]:
    """Compare each component, run through its graphs exactly as it will be when loaded, with eager. Raises OutsideTolerance.

    All of eager comes first: a graph left in place would be compared with itself.
    """
    with torch.inference_mode():
        eager = [_timed(plan, call) for call in plan.calls]
        _put_graphs(plan, graphs, kinds)
        try:
            served = [_timed(plan, call) for call in plan.calls]
        finally:
            for module in plan.modules.values():
                take_away(module)
    names = list(map(str, plan.calls))
    measured["eager_first_call_s"] = dict(zip(names, (seconds for _, seconds in eager), strict=True))
    measured["graph_first_call_s"] = dict(zip(names, (seconds for _, seconds in served), strict=True))
    comparisons = [compare(got, expected) for (got, _), (expected, _) in zip(served, eager, strict=True)]
    for name, comparison in zip(names, comparisons, strict=True):
        check(comparison, what=name, allowed=allowed)
    calls = [{"call": name, **comparison.to_json()} for name, comparison in zip(names, comparisons, strict=True)]
    return {"tolerance_relative_l2": allowed, "calls": calls}


def _timed(plan: Plan, call: Call) -> tuple[Any, float]:
    args, kwargs = call.signature.call(call.tensors)
    started = time.perf_counter()
    returned = plan.modules[call.component](*args, **kwargs)
    return returned, round(time.perf_counter() - started, 4)


def _put_graphs(plan: Plan, graphs: list[Graph], kinds: dict[Digest, Kind]) -> None:
    for name, path in {(graph.entry.component, path) for graph in graphs for path in graph.entry.paths}:
        here = [graph for graph in graphs if graph.entry.component == name and path in graph.entry.paths]
        module = plan.modules[name].get_submodule(path)
        by_signature = {graph.entry.signature: graph for graph in here}
        policy = Policy(name, "cpu", OnMiss.ERROR, lambda function: function, Ledger())
        put(module, Dispatcher(forward_of(module), module, by_signature, kinds[here[0].entry.kind], policy))


@contextmanager
def _stage(parent: Parent, what: str) -> Iterator[dict[str, float]]:
    """Tell the parent what begins; on success the yielded dict gets `seconds`."""
    parent.tell("stage", what=what)
    started, result = time.perf_counter(), dict[str, float]()
    yield result
    result["seconds"] = round(time.perf_counter() - started, 3)
