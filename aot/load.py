"""Load: attach a store's graphs to live modules, or say why not and leave them to the next step of the ladder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aot.artifact import open_graphs, read_book
from aot.book import Kind
from aot.dispatch import Dispatcher, OnMiss, Policy
from aot.errors import Miss
from aot.facts import of_module, of_wish
from aot.fingerprint import Fingerprint
from aot.jit import Jit
from aot.ledger import Ledger
from aot.options import Options
from aot.resolve import Accepted, Candidate, Rejected, candidates, nearest, set_aside
from aot.runner import Graph
from aot.signature import Signature
from aot.target import Target
from cache_store.errors import CodedError
from cache_store.store import Store


@dataclass(frozen=True, slots=True)
class Site:
    """Where a dispatcher goes, and what it will serve."""

    module: nn.Module
    kind: Kind
    graphs: dict[Signature, Graph] = field(default_factory=dict)


def attach(modules: Mapping[str, nn.Module], store: Store, *, options: Options, target: Target, on_miss: OnMiss, ledger: Ledger) -> None:
    """Load every artifact of `store` that serves `modules` (by path) and put dispatchers in place.

    A module that nothing serves is left to `on_miss`. By default nothing here raises: what is missing, refused or corrupt is
    said once and costs a compile. With `on_miss="error"` raises Miss instead, before the first call.
    """
    started = time.perf_counter()
    fingerprints = {path: Fingerprint.of(module) for path, module in modules.items()}
    facts = {path: of_module(module, fingerprints[path]) for path, module in modules.items()}
    found = candidates(store, modules=facts, wish=of_wish(options, target))
    ledger.spent("find", time.perf_counter() - started)

    sites: dict[tuple[str, str], Site] = {}
    accepted = [candidate for candidate in found if isinstance(candidate.verdict, Accepted)]
    for candidate in accepted:
        _open(candidate, store, modules=modules, sites=sites, ledger=ledger)
    # only artifacts that were built for this very model, mode and target can make its compilation warm
    jit = Jit(options, store=store, manifests=[candidate.manifest for candidate in accepted], ledger=ledger)
    for path in set(modules) - {path for path, _ in sites}:
        why = _why(store, found, path, fingerprints[path])
        fall_back(modules[path], path, on_miss=on_miss, jit=jit.compiled, why=why, ledger=ledger)
    for (path, _), site in sites.items():
        policy = Policy(path, target.device, on_miss, jit.compiled, ledger)
        put(site.module, Dispatcher(forward_of(site.module), site.module, site.graphs, site.kind, policy))


def _open(
    candidate: Candidate, store: Store, *, modules: Mapping[str, nn.Module], sites: dict[tuple[str, str], Site], ledger: Ledger
) -> None:
    """Add one artifact's graphs to the sites; a graph that a newer artifact brought stays."""
    assert isinstance(candidate.verdict, Accepted)
    try:
        book, graphs = open_graphs(store, candidate.digest, candidate.manifest, ledger)
    except CodedError as error:
        set_aside(store, error)
        return
    for path, built in candidate.verdict.components.items():
        for graph in graphs:
            if graph.entry.component == built:
                for inner in graph.entry.paths:
                    site = sites.setdefault((path, inner), Site(modules[path].get_submodule(inner), book.kinds[graph.entry.kind]))
                    site.graphs.setdefault(graph.entry.signature, graph)


def _why(store: Store, found: list[Candidate], path: str, live: Fingerprint) -> str:
    """Why nothing was loaded for the component at `path`, by the artifact that came nearest."""
    if not found:
        return "the store holds no artifact"
    near = nearest(found, path)
    if near is None:
        return "its artifact could not be loaded"
    candidate, rejected = near
    structure = _structure(store, candidate, rejected, path, live)
    return f"no artifact for it; the nearest, {candidate.ref.name}@{candidate.ref.key.short}, differs in {rejected}{structure}"


def _structure(store: Store, candidate: Candidate, rejected: Rejected, path: str, live: Fingerprint) -> str:
    """What the fingerprints differ in, in words, when they do: two digests tell nobody anything."""
    if f"{path} fingerprint" not in {part for part, _, _ in rejected.differences}:
        return ""
    try:
        book = read_book(store, candidate.digest, candidate.manifest)
    except CodedError as error:
        set_aside(store, error)
        return ""
    return f" ({book.kinds[book.components[rejected.compared[path]]].fingerprint.differs(live)})"


def fall_back(
    module: nn.Module, path: str, *, on_miss: OnMiss, jit: Callable[[Callable[..., Any]], Callable[..., Any]], why: str, ledger: Ledger
) -> None:
    """Serve a module for which no graph was loaded as `on_miss` says. Raises Miss under `error`."""
    if on_miss is OnMiss.ERROR:
        raise Miss(f"{path}: {why}.", remedy="build the artifact with `aot build`, or choose another on_miss.")
    ledger.missed(on_miss.sentence(path, why))
    if on_miss is OnMiss.COMPILE:
        put(module, jit(forward_of(module)))


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """The forward that computes: below accelerate's offloading hook, if there is one."""
    plain: Callable[..., Any] = vars(module)["_old_forward"] if "_hf_hook" in vars(module) else module.forward
    return plain


def put(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Replace the forward that computes by `forward`; `take_away` undoes it."""
    slot = "_old_forward" if "_hf_hook" in vars(module) else "forward"
    module.__dict__["_aot_plain"] = vars(module).get(slot)
    module.__dict__[slot] = forward


def take_away(module: nn.Module) -> None:
    """Give `module` and its submodules the forwards they had before `put`. Fine where there is nothing to undo."""
    for child in module.modules():
        own = vars(child)
        if "_aot_plain" not in own:
            continue
        plain = own.pop("_aot_plain")
        if "_hf_hook" in own:
            own["_old_forward"] = plain or type(child).forward.__get__(child)
        elif plain is None:
            own.pop("forward", None)
        else:
            own["forward"] = plain
