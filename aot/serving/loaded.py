"""Loaded: what the artifacts of a store hold for a live module, opened once, and put in the place of nothing."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from weakref import WeakKeyDictionary

import torch
from torch import nn

from aot.artifact.facts import of_wish
from aot.artifact.guard import Guard
from aot.artifact.ledger import Ledger, close_ledger, keep_ledger, log
from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError
from aot.environment import GRAPH_CACHE
from aot.errors import Unsupported
from aot.machine.settings import claim, complete
from aot.machine.target import Allow, Target
from aot.model.fingerprint import Fingerprint
from aot.request.options import Options
from aot.serving.dispatch import OnMiss
from aot.serving.found import find
from aot.serving.held import share
from aot.serving.load import Opening
from aot.serving.nexfort import opened
from aot.serving.resolve import Accepted, judge
from aot.serving.sealed import Part


@dataclass(frozen=True, slots=True)
class Asked:
    """How a module is to be compiled, where artifacts are looked for, and what serves a call that no graph serves."""

    options: Options
    on_miss: OnMiss
    allow: frozenset[Allow]
    location: str


@dataclass(slots=True)
class Loaded:
    """The graphs that artifacts have for a component in the state `state`, by the paths of the submodules that they stand for; or why
    there are none."""

    asked: Asked
    state: Digest
    ledger: Ledger
    parts: dict[str, Part] = field(default_factory=dict)
    why: str = ""

    def of(self, component: nn.Module, module: nn.Module) -> Part | None:
        """Those for `module`, which is the component or a part of it."""
        return next((part for path, part in self.parts.items() if component.get_submodule(path) is module), None)

    def tell(self, component: nn.Module) -> None:
        """Have `aot.stats()` tell of it, for as long as the component is there."""
        if keep_ledger(self.ledger):
            share([component], partial(close_ledger, self.ledger))
            if self.parts:
                log.info("%s", self.ledger.said())


# by component, and without holding on to it
_loaded: WeakKeyDictionary[nn.Module, list[Loaded]] = WeakKeyDictionary()


def load(component: nn.Module, asked: Asked) -> Loaded:
    """What the store has for `component` as it is now; looked for once for each state. Loading an artifact runs its author's code."""
    known, state = _loaded.setdefault(component, []), Fingerprint.of(component).digest
    if found := next((one for one in known if one.asked == asked and one.state == state), None):
        return found
    old = next((one for one in known if one.asked == asked), None)  # of a state that is no more: one account is kept of all
    loaded = Loaded(asked, state, old.ledger if old else Ledger(components=(type(component).__name__,)))
    known[:] = [*(one for one in known if one is not old), loaded]
    loaded.ledger.unserved.clear()
    try:
        _open(component, loaded)
    except CodedError as error:  # a store, device or torch that cannot be used costs a compile, not the service
        loaded.why = f"{error.code} {error.message.rstrip('.')}"
    if loaded.why:
        loaded.ledger.unserved[type(component).__name__] = loaded.why
    return loaded


def _open(component: nn.Module, loaded: Loaded) -> None:
    asked, name = loaded.asked, type(component).__name__
    if asked.location in ("", "0"):
        loaded.why = f"{GRAPH_CACHE} is not set"
        return
    store, local = opened(asked.location)
    device = next((weight.device for weight in component.parameters()), torch.device("cpu"))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # graphs are opened on the current one
        here, guard = Target.detect(device.type), Guard.of(local.root, os.environ)
        with loaded.ledger.timed("find"):
            wished = of_wish(asked.options, here)
            fingerprints, facts, found = find({name: component}, store, asked.options, wished, allow=asked.allow)
        verdict = partial(judge, modules=facts, wish=wished, allow=asked.allow)
        opening = Opening(store, {name: component}, fingerprints, here, guard, loaded.ledger, verdict, asked.allow)
        accepted = [candidate for candidate in found if isinstance(candidate.verdict, Accepted)]
        if accepted:
            _rely(component, asked.options)
        for candidate in accepted:
            opening.open(candidate)
    loaded.parts = {inner: Part(site.kind, site.graphs) for (_, inner), site in opening.served.items()}
    if not loaded.parts:
        loaded.why = opening.why(found, name)


def _rely(component: nn.Module, options: Options) -> None:
    """Have the process settings that artifacts were built with stay as they are. Nothing is set: Dynamo guards some of them, and is in
    the middle of tracing. Raises Unsupported where one is otherwise, Conflict where somebody relies on the opposite."""
    settings = complete(options.process)
    for name, value in settings.items():
        if (here := attrgetter(name)(torch.backends)) != value:
            raise Unsupported(f"torch.backends.{name} is {here}, built with {value}.")
    share([component], claim(f"the {options.mode.title} compilation of {type(component).__name__}", settings))
