"""Dispatch: send each call of a module to the graph for its signature, or down the fallback ladder with the reason."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

import torch
from torch import nn

from aot.artifact.book import Kind
from aot.artifact.ledger import Ledger
from aot.artifact.runner import Graph
from aot.errors import LoadFailed, Miss, Unsupported, first_line
from aot.model.convention import Convention
from aot.model.fingerprint import Fingerprint
from aot.model.seal import Seal
from aot.model.signature import Signature, TensorSpec
from aot.model.slots import Slotted, has_adapters
from aot.model.weights import Frozen, LiveWeights, WeightForms, unbacked, unfit
from aot.model.words import PLAIN_TENSORS, Met
from aot.serving.adapters import Slots
from aot.serving.shapebook import ShapeBook
from aot.serving.standin import Compiled, StandIn, standing
from aot.serving.surroundings import surroundings

GRADIENT = "a gradient is asked for, graphs have none (call under torch.inference_mode())"


class OnMiss(StrEnum):
    """What serves a call that no graph serves."""

    COMPILE = "compile"
    EAGER = "eager"
    ERROR = "error"

    def sentence(self, component: str, reason: str) -> str:
        """The line that tells of a miss: where, why, and what is done instead."""
        does = {OnMiss.COMPILE: "compiling", OnMiss.EAGER: "running eagerly", OnMiss.ERROR: "refusing"}[self]
        return f"{Miss.code} {component}: {reason}; {does} (on_miss={self})."

    @staticmethod
    def as_error(component: str, reason: str) -> Miss:
        """What is raised of a call's miss."""
        return Miss(f"{component}: {reason.rstrip('.')}.", remedy="add this call's shape to the build, or choose on_miss.")


@dataclass(frozen=True, slots=True)
class ServedBy:
    """How the dispatchers of one component answer a call they have no graph for."""

    component: str
    device: str  # the type of device whose autocast would change a result
    on_miss: OnMiss
    jit: Callable[[Callable[..., Any]], Callable[..., Any]]  # torch.compile, with the artifact's cache layer warm
    ledger: Ledger


class Dispatcher(StandIn):
    """Stands for `module.forward`. Lookup is one dict access by the call's raw identity; all else is the slow path.

    Never lets a call reach a graph that was compiled for other shapes, strides, dtypes, devices, types of tensors or non-tensor
    values, for another structure or other code, under a mode that would see or change what is computed, or where a gradient
    is asked for. What of this changes between two calls is noticed at the next.
    """

    def __init__(self, module: nn.Module, graphs: ShapeBook, kind: Kind, policy: ServedBy) -> None:
        super().__init__(module)
        self._graphs, self._kind, self._policy = graphs, kind, policy
        self._known: dict[Any, _Known] = {}
        self._weights = LiveWeights(module, [name for name, _ in kind.weights])
        self._forms: dict[torch.device, WeightForms] = {}
        self._slots: dict[tuple[Any, torch.device], Slots] = {}
        self._adapted = False  # whether there were adapters in the module when it was last looked at
        self._frozen = Frozen(module) if graphs.frozen else None  # kept only where it is needed: it holds on to the weights
        self._seal: Seal | None = None
        self._refused: tuple[Seal, str] | None = None  # a state that is not ours, and why
        self._jitted = Compiled(module, policy.jit)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.retired or torch.compiler.is_compiling():  # what is being traced is the model, not how it is served
            return self.traced(*args, **kwargs)
        tensors: list[torch.Tensor] = []
        try:
            key = (surroundings(self._policy.device), _identity(args, tensors), _identity(kwargs, tensors))
        except RuntimeError as error:  # a nested tensor has no shape
            return self._missed(f"the call holds a tensor of no form that graphs take ({first_line(error)})", args, kwargs)
        try:
            found = self._known.get(key)
        except TypeError:  # the call holds something unhashable
            found = None
        if found is None:
            return self._unseen(key, args, kwargs)
        return self._run(found, tensors if found.order is None else [tensors[place] for place in found.order], args, kwargs)

    def seal(self, met: Met) -> None:
        """From now on what was `met` when the module's fingerprint was taken has to stay as it is."""
        self._seal = self._sealed(met)

    def _sealed(self, met: Met) -> Seal:
        """A seal on the module as it is now. Adapters are not in it where graphs have room for them: these are looked at by themselves."""
        self._adapted = self._graphs.slotted and has_adapters(self._module)
        return Seal(self._module, met, self._kind.code, through=self._graphs.slotted)

    def _live(self) -> Fingerprint:
        return Fingerprint.of(self._module, served=True, through=self._graphs.slotted)

    def put(self) -> None:
        super().put()
        self._jitted._before = self._before

    def _run(self, known: _Known, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        graph, weights = known.graph, self._weights.tensors()
        if weights is None or not (graph.launches_first or self._holds()):
            return self._changed(args, kwargs)
        if reason := known.unfit(tensors) or self._unfit(graph, weights):
            return self._missed(reason, args, kwargs)
        if known.moved:
            tensors = known.laid_out(tensors)
        if known.slots is not None:
            if reason := known.slots.refuses(self._seal):
                return self._missed(reason, args, kwargs)
            weights = weights + known.slots.tensors
        inputs = tensors if graph.entry.frozen else weights + tensors
        try:
            outputs = graph.run(inputs, known.convention.canonical(args, kwargs) if graph.writes else None)
        except torch.OutOfMemoryError:  # what eager would raise too, and servers wait for
            raise
        except RuntimeError as error:
            reason = f"graph {graph.entry.file} failed: {first_line(error)}"
            if self._policy.on_miss is OnMiss.ERROR:
                raise LoadFailed(f"{reason}.", remedy="call aot.restore() to go on without it, and build it again.") from error
            return self._missed(reason, args, kwargs)
        if graph.launches_first and not self._holds():  # looked at while the device computes; the result is dropped
            return self._changed(args, kwargs)
        graph.hits += 1
        return outputs

    def differs(self) -> str | None:
        """What of the module is not what its graphs were built from, or what of its adapters has no room in them, in words; None where
        they would serve it."""
        reason = None if self._holds() else self._kind.differs(self._module, self._live())
        if reason or not (self._graphs.slotted and has_adapters(self._module)):
            return reason
        now = object()  # nobody has sealed what is there now
        reasons = [slots.refuses(now) for graph in self._graphs if (slots := self._slots_of(graph))]
        return reasons[0] if all(reasons) else None

    def _holds(self) -> bool:
        return self._seal is not None and self._seal.holds()

    def _unfit(self, graph: Graph, weights: list[torch.Tensor]) -> str | None:
        """Why the weights are none that the graph can take, or has inside; or None."""
        if graph.entry.frozen:
            assert self._frozen is not None
            return self._frozen.changed()
        forms = self._forms.get(graph.device)
        if forms is None:
            forms = self._forms[graph.device] = WeightForms(self._kind.weights, graph.device)
        return forms.refuses(weights)

    def slotted(self) -> list[Slotted]:
        """What room for adapters its graphs have, the roomiest last."""
        found = {graph.entry.slots: None for graph in self._graphs if graph.entry.slots}
        return sorted(found, key=lambda slots: slots[0][1].shape[0])

    def _slots_of(self, graph: Graph) -> Slots | None:
        """What holds the adapters for a graph, if it has room for any; shared by those that have it alike."""
        entry = graph.entry
        if not entry.slots:
            return None
        key = entry.slots, graph.device
        if key not in self._slots:
            self._slots[key] = Slots(self._module, entry.slots, graph.device)
        return self._slots[key]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied module is served too, with its own weights; libraries are shared, being stateless."""
        twin = super().__deepcopy__(memo)
        twin._seal = twin._refused = None  # the copy is not complete yet: look at its first call
        twin._weights = LiveWeights.nowhere()
        twin._frozen = Frozen.unknown()  # a copy's weights are others, as far as anybody can tell without reading them all
        twin._known, twin._forms, twin._slots = {}, {}, {}
        twin._jitted = Compiled(twin._module, self._policy.jit)
        twin._jitted._before = twin._before
        return twin

    def _unseen(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call not seen before in this form: serve it if its canonical form is in the shape book."""
        if reason := key[0].refuses(self._module):
            return self._missed(reason, args, kwargs)
        convention = Convention(self.plain)
        try:
            signature, tensors = Signature.of(*convention.canonical(args, kwargs))
            order = convention.order(args, kwargs)
        except Unsupported as error:
            return self._missed(error.message, args, kwargs)
        if torch.is_grad_enabled() and any(found.requires_grad for found in (*tensors, *self._module.parameters())):
            return self._missed(GRADIENT, args, kwargs)
        found = self._find(signature, args, kwargs)
        if isinstance(found, str):
            return self._missed(found, args, kwargs)
        graph, built = found
        named = [(name, spec) for name, spec in signature.named()]
        moved = [(place, spec) for place, spec in enumerate(built.specs) if spec != signature.specs[place]]
        in_order = order == list(range(len(tensors)))
        spans = [spec.span for _, spec in named]
        known = _Known(graph, convention, None if in_order else order, named, spans, moved, self._slots_of(graph))
        for (name, spec), tensor in zip(named, tensors, strict=True):
            if reason := unfit(tensor, spec, graph.device):
                return self._missed(f"{name} {reason}", args, kwargs)
        if not torch.is_grad_enabled():  # with it on, whether a gradient is asked for may change between two calls
            with suppress(TypeError):  # an unhashable call is looked at every time
                self._known[key] = known
        return self._run(known, tensors, args, kwargs)

    def _find(self, signature: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Graph, Signature] | str:  # noqa: ARG002
        """The graph for a call and the signature of what it is to be given; or why there is none. The call itself: as it is written."""
        return self._graphs.find(signature, adapted=self._adapted) or self._graphs.nearest(signature, adapted=self._adapted)

    def _changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Something of the module or its code is not what it was: go on if it comes to the same, else say what differs."""
        if self._refused is not None and self._refused[0].holds():
            return self._missed(self._refused[1], args, kwargs)
        live = self._live()
        reason = self._kind.differs(self._module, live)
        seal = self._sealed(live.met)
        if reason is None and seal.holds():
            self._seal, self._refused = seal, None
            self._known.clear()
            self._weights = LiveWeights(self._module, [name for name, _ in self._kind.weights])
            return self(*args, **kwargs)
        self._jitted.forget()
        self._refused = seal, reason or "it holds something that is never equal to itself"
        return self._missed(self._refused[1], args, kwargs)

    def _missed(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        policy = self._policy
        policy.ledger.missed(policy.on_miss.sentence(policy.component, reason))
        match policy.on_miss:
            case OnMiss.ERROR:
                raise OnMiss.as_error(policy.component, reason)
            case OnMiss.EAGER:
                return self.plain(*args, **kwargs)
            case OnMiss.COMPILE:
                return self._jitted(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class _Known:
    """A form of call that a graph serves: where its tensors are in the call as written, and how much memory each needs."""

    graph: Graph
    convention: Convention
    order: list[int] | None
    named: list[tuple[str, TensorSpec]]
    spans: list[int]
    moved: list[tuple[int, TensorSpec]]  # tensors that lie otherwise in memory than the graph takes them, and how it does
    slots: Slots | None

    def laid_out(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """With copies of those that lie otherwise. A module's own layouts differ from those that a build saw on fakes, and what passes
        an image on depends on where it came from."""
        copies = {place: spec.lay_out(tensors[place]) for place, spec in self.moved}
        return [copies.get(place, tensor) for place, tensor in enumerate(tensors)]

    def unfit(self, tensors: list[torch.Tensor]) -> str | None:
        """The first tensor whose memory is gone or too small, or None: the rest is in the form of the call."""
        for place, tensor in enumerate(tensors):
            if reason := unbacked(tensor, self.spans[place]):
                return f"{self.named[place][0]} {reason}"
        return None


def dispatchers(module: nn.Module) -> dict[str, Dispatcher]:
    """Those that stand for `module` and its submodules, by path."""
    paths = {id(child): path for path, child in module.named_modules()}
    return {paths[id(found._module)]: found for found in standing(module) if isinstance(found, Dispatcher)}


def _identity(value: Any, tensors: list[torch.Tensor]) -> Any:
    """What tells one call from another, quickly; its tensors are appended to `tensors` in order."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        if kind not in PLAIN_TENSORS or value.layout is not torch.strided:
            return (kind, [])  # cannot be hashed, and so is never known
        return (kind, value.shape, value.stride(), value.dtype, value.device, value.is_conj(), value.is_neg())
    if kind is dict:
        return (kind, *[(key, _identity(item, tensors)) for key, item in value.items()])
    if kind is tuple or kind is list:
        return (kind, *[_identity(item, tensors) for item in value])
    return (kind, value)  # the type too: True, 1 and 1.0 are equal
