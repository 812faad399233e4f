"""Packages at run time: others' compiled blocks in a live model, each call compared with the model itself before it is served.

A package does not say what module it was made of, nor from which code. So a call of a form that was not seen before is computed both
ways; where the two agree, calls of that form are served for as long as nothing of the module changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from aot.artifact.book import GraphEntry, Kind
from aot.artifact.borrowed import Borrowed, BorrowedLibrary, order_of
from aot.artifact.certificate import TOLERANCE, compare
from aot.artifact.guard import Guard
from aot.artifact.ledger import Ledger
from aot.artifact.packaged import Packaged
from aot.artifact.runner import Graph, device_here
from aot.cache_store.cached import CachedStore
from aot.cache_store.errors import CodedError
from aot.cache_store.store import Entry, Store
from aot.cache_store.trust import Admitted
from aot.errors import LoadFailed, Unsupported, first_line
from aot.machine.device import wait_for_device
from aot.machine.fit import PACKAGED, built_for, is_packaged
from aot.machine.target import Target
from aot.model.convention import Convention
from aot.model.fingerprint import Fingerprint
from aot.model.signature import Signature, TensorSpec, fill, flatten
from aot.model.traced import TracedCode
from aot.model.tracing import tracing
from aot.model.weights import LiveWeights, unfit
from aot.serving.dispatch import Dispatcher, ServedBy
from aot.serving.rehearsal import read_packages, rehearse
from aot.serving.resolve import set_aside
from aot.serving.shapebook import ShapeBook
from aot.shipping.packages import ROOT, SUBMODULES


@dataclass(frozen=True, slots=True)
class PackageSite:
    """A module that a package is for."""

    module: nn.Module
    library: BorrowedLibrary
    name: str  # of the package, in messages
    entering: Callable[[], AbstractContextManager[None]]  # leaves a mark while its code is run for the first time

    def serve(self, policy: ServedBy, _: Fingerprint | None = None) -> Dispatcher:
        """Put a dispatcher in the module's place."""
        dispatcher = PackageDispatcher(self, policy)
        dispatcher.put()
        return dispatcher


class PackageDispatcher(Dispatcher):
    """Stands for a module that a package is for."""

    def __init__(self, site: PackageSite, policy: ServedBy) -> None:
        super().__init__(site.module, ShapeBook(), Kind(Fingerprint(()), site.library.packaged.weights), policy)
        self._library, self._name, self._entering = site.library, site.name, site.entering
        self._refusals: dict[Signature, str] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = super().__deepcopy__(memo)
        twin._graphs, twin._refusals = ShapeBook(), {}  # its own calls are compared anew
        return twin

    def differs(self) -> str | None:
        """As it is known from calls: none is promised before it was compared."""
        if not any(self._graphs):
            return "its packages are compared with the model at the first call of each form, and none was made yet"
        return super().differs()

    def _find(self, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph, Signature] | str:
        found = self._graphs.find(signature)
        if found is not None and found[1] == signature:
            return found
        if signature not in self._refusals:
            try:
                graph = self._proved(signature, args, kwargs)
            except (Unsupported, LoadFailed) as error:
                self._refusals[signature] = f"{self._name}: {error.message.rstrip('.')}"
            else:
                self._graphs.add(graph)
                self._policy.ledger.graphs.append(graph)
                return graph, signature
        return self._refusals[signature]

    def _proved(self, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
        """The package for calls like this one, which was computed both ways. Raises Unsupported, LoadFailed where the two do not agree,
        or the package is not for such calls."""
        packaged, convention = self._library.packaged, Convention(self.plain)
        order = order_of(packaged, signature, convention)
        expected, code = self._eagerly(args, kwargs)
        live = self._live()
        kind = Kind(live, packaged.weights, code | self._kind.code if self._kind.fingerprint == live else code)
        if list(self._graphs) and self._kind.fingerprint != live:
            self._graphs, self._known = ShapeBook(), {}  # what was compared before was another state of the module
        self._kind, self._forms = kind, {}
        self._weights = LiveWeights(self._module, [name for name, _ in packaged.weights])
        self._seal, self._refused = self._sealed(live.met), None
        entry = GraphEntry(self._policy.component, ("",), live.digest, self._name, signature, flatten(expected, []))
        graph, weights = Borrowed(entry, self._library, order), self._weights.tensors()
        tensors: list[torch.Tensor] = []
        flatten(convention.canonical(args, kwargs), tensors)
        if weights is None:
            raise Unsupported("not all of its weights are in the module.")
        if reason := self._unfit(graph, weights):
            raise Unsupported(f"{reason}.")
        for (name, spec), tensor in zip(signature.named(), tensors, strict=True):
            if reason := unfit(tensor, spec, graph.device):
                raise Unsupported(f"{name} {reason}.")
        try:
            with self._entering():
                got = graph.run([*weights, *tensors])
                wait_for_device()
        except (RuntimeError, StopIteration) as error:
            raise LoadFailed(f"it failed: {first_line(error)}.") from error
        found, allowed = compare(got, expected).relative_l2, _tolerance(packaged)
        if not found <= allowed:
            raise LoadFailed(f"it gives another result than the module: relative L2 {found:.1e}, allowed are {allowed:.0e}.")
        return graph

    def _eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, TracedCode]:
        """What the module itself returns for copies of a call, and the code that ran. Raises Unsupported where it writes to them."""
        tensors: list[torch.Tensor] = []
        form = flatten((args, kwargs), tensors)
        copies = [tensor.clone() for tensor in tensors]
        copied_args, copied_kwargs = fill(form, iter(copies))
        with tracing() as codes:
            expected = self.plain(*copied_args, **copied_kwargs)
        if flatten((copied_args, copied_kwargs), []) != form or not all(map(_same, copies, tensors)):
            raise Unsupported("the module writes to what it is given, which a package may not.")
        return expected, TracedCode.of(codes, self._module)


def _same(copy: torch.Tensor, tensor: torch.Tensor) -> bool:
    return bool(torch.equal(copy, tensor)) or bool(tensor.isnan().any())


def _tolerance(packaged: Packaged) -> float:
    """That of the widest format among its weights and inputs."""
    dtypes = {spec.dtype for _, spec in packaged.weights} | {given.dtype for given in packaged.inputs}
    return max((TOLERANCE[dtype] for dtype in dtypes if dtype in TOLERANCE), default=TOLERANCE["float32"])


@dataclass(slots=True)
class Borrowing:
    """Packages of a store being put into live modules: where they go, and why others do not."""

    store: Store
    here: Target
    guard: Guard
    ledger: Ledger
    sites: dict[tuple[str, str], PackageSite]
    problems: dict[str, str]

    @classmethod
    def of(cls, store: Store, here: Target, guard: Guard, ledger: Ledger) -> Self:
        return cls(store, here, guard, ledger, {}, {})

    def into(self, modules: Mapping[str, nn.Module]) -> None:
        """Every artifact of packages that fits this machine and some of `modules`, by path. Nothing raises."""
        try:
            found = [*self.store.entries(within={"layout": PACKAGED})] if modules else []
        except CodedError as error:
            self._refuse(modules, f"{error.code} {error.message.rstrip('.')}")
            return
        for entry in filter(lambda one: is_packaged(one.key), found):
            wanted = {path: places for path, module in modules.items() if (places := list(_placed(entry, module)))}
            if wanted:
                try:
                    self._take(entry, wanted)
                except CodedError as error:
                    set_aside(self.store, error)
                    self._refuse(wanted, f"{error.code} {error.message.rstrip('.')}")

    def _refuse(self, paths: Collection[str], why: str) -> None:
        for path in paths:
            self.problems.setdefault(path, why)

    def _take(self, entry: Entry, wanted: Mapping[str, list[tuple[str, str, nn.Module]]]) -> None:
        what = f"the packages {entry.ref.name} ({entry.key.get('variant')})"
        if differences := built_for(entry.key, self.here):
            self._refuse(wanted, f"{what} are for another machine: {differences[0]}")
            return
        with self.ledger.timed("verify"):
            admitted = self.guard.admit(self.store, entry.digest)
        if isinstance(self.store, CachedStore):
            with self.ledger.timed("pull"):
                self.store.bring(admitted.digest)
        packages = read_packages(self.store, admitted, self.ledger)
        fitting: list[tuple[str, str, str, nn.Module]] = []
        for path, places in wanted.items():
            for place, inner, module in places:
                if reason := _weights_differ(packages[place], module):
                    self._refuse([path], f"{what}: {place} is not for {inner or path}: {reason}")
                elif (path, inner) not in self.sites:
                    fitting.append((path, place, inner, module))
        if not fitting:
            return
        with self.ledger.timed("canary"):
            rehearse(self.store, admitted, here=self.here, guard=self.guard)
        self._open(admitted, packages, fitting, what)

    def _open(self, admitted: Admitted, packages: dict[str, Packaged], fitting: list[tuple[str, str, str, nn.Module]], what: str) -> None:
        device = device_here(self.here.device)
        with self.ledger.timed("load"), self.guard.entering(admitted.digest):
            libraries = {place: BorrowedLibrary(packages[place], device) for place in {place for _, place, _, _ in fitting}}
        self.ledger.artifacts.append(str(admitted.digest))
        entering = partial(self.guard.entering, admitted.digest)
        for path, place, inner, module in fitting:
            self.sites[path, inner] = PackageSite(module, libraries[place], f"{what.removeprefix('the ')}, {place}", entering)
            served = self.ledger.served.setdefault(path, [])
            if (name := f"{admitted.manifest.name}@{admitted.digest.short}") not in served:
                served.append(name)


def _placed(entry: Entry, module: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Which packages of an artifact go where below `module`: place, path and module. Blocks by the name of their class, as Spaces do it."""
    for place in entry.key.get("packages", "").split():
        if place == ROOT:
            yield place, "", module
        elif place.startswith(f"{SUBMODULES}/"):
            path = place.removeprefix(f"{SUBMODULES}/")
            found = dict(module.named_modules()).get(path)
            if found is not None:
                yield place, path, found
        else:
            yield from ((place, path, child) for path, child in module.named_modules() if type(child).__name__ == place)


def _weights_differ(packaged: Packaged, module: nn.Module) -> str | None:
    """Why the weights of `module` are none that the package takes, in words, or None."""
    for name, spec in packaged.weights:
        found = LiveWeights(module, [name]).tensors()
        if not found or found[0] is None:
            return f"it has no {name}"
        try:
            live = TensorSpec.of(found[0])
        except Unsupported as error:
            return f"{name}: {error.message}"
        if reason := spec.differs(live):
            return f"{name}.{reason}"
    return None
