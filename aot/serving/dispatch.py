"""Dispatch: send each call of a module to the graph for its signature, or down the fallback ladder with the reason."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from aot.artifact.book import Kind
from aot.artifact.dynamic import DynamicRange
from aot.artifact.ledger import Ledger
from aot.artifact.runner import Graph
from aot.errors import LoadFailed, Miss, Unsupported
from aot.model.fingerprint import Fingerprint
from aot.model.signature import Convention, Signature, TensorSpec
from aot.model.weights import FrozenWeights, LiveWeights


class OnMiss(StrEnum):
    """What serves a call that no graph serves."""

    COMPILE = "compile"
    EAGER = "eager"
    ERROR = "error"

    def sentence(self, component: str, reason: str) -> str:
        """The line that tells of a miss: where, why, and what is done instead."""
        does = {OnMiss.COMPILE: "compiling", OnMiss.EAGER: "running eagerly", OnMiss.ERROR: "refusing"}[self]
        return f"{Miss.code} {component}: {reason}; {does} (on_miss={self})."


@dataclass(frozen=True, slots=True)
class ServedBy:
    """How the dispatchers of one component answer a call they have no graph for."""

    component: str
    device: str  # the type of device whose autocast would change a result
    on_miss: OnMiss
    jit: Callable[[Callable[..., Any]], Callable[..., Any]]  # torch.compile, with the artifact's cache layer warm
    ledger: Ledger


class ShapeBook:
    """The loaded graphs of one module: each signature's own, and those of ranges."""

    __slots__ = ("_exact", "_ranges")

    def __init__(self) -> None:
        self._exact: dict[Signature, Graph] = {}
        self._ranges: dict[DynamicRange, Graph] = {}

    def add(self, graph: Graph) -> None:
        """Take `graph` in; one that is there already for the same calls stays."""
        if graph.entry.dynamic:
            self._ranges.setdefault(graph.entry.dynamic, graph)
        else:
            self._exact.setdefault(graph.entry.signature, graph)

    def extend(self, other: ShapeBook) -> None:
        """Take in what `other` has."""
        for graph in (*other._exact.values(), *other._ranges.values()):
            self.add(graph)

    @property
    def frozen(self) -> bool:
        """Whether a graph here has its weights inside."""
        return any(graph.entry.frozen for graph in (*self._exact.values(), *self._ranges.values()))

    def find(self, signature: Signature) -> Graph | None:
        """The graph for exactly this signature, else one whose range holds it, else None."""
        if exact := self._exact.get(signature):
            return exact
        return next((graph for dynamic, graph in self._ranges.items() if dynamic.refuses(signature) is None), None)

    def nearest(self, signature: Signature) -> str:
        """Why the graph that comes nearest does not serve a call of this signature."""
        reasons = [reason for known in self._exact if (reason := known.differs(signature))]
        reasons += [reason for dynamic in self._ranges if (reason := dynamic.refuses(signature))]
        if not reasons:
            return "no graph was loaded for it"
        more = f" (and {len(reasons) - 1} more in the shape book)" if len(reasons) > 1 else ""
        return min(reasons, key=len) + more


class Dispatcher:
    """Stands in for `module.forward`. Lookup is one dict access by the call's raw identity; all else is the slow path.

    Never lets a call reach a graph that was compiled for other shapes, strides, dtypes, devices or non-tensor values,
    for another structure, under autocast, or where a gradient is asked for.
    """

    def __init__(self, plain: Callable[..., Any], module: nn.Module, graphs: ShapeBook, kind: Kind, policy: ServedBy) -> None:
        self.plain = plain
        self._module, self._graphs, self._kind, self._policy = module, graphs, kind, policy
        self._known: dict[Any, tuple[Graph, list[int] | None]] = {}
        self._weights = LiveWeights(module)
        # kept only where it is needed: it holds on to the weights
        self._frozen = FrozenWeights(self._weights.tensors() or []) if graphs.frozen else None
        self._refused: tuple[LiveWeights, str] | None = None  # a structure that is not ours, and why
        self._jitted: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors: list[torch.Tensor] = []
        key = (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled(self._policy.device),
            _identity(args, tensors),
            _identity(kwargs, tensors),
        )
        try:
            found = self._known.get(key)
        except TypeError:  # the call holds something unhashable
            found = None
        if found is None:
            return self._unseen(key, args, kwargs)
        graph, order = found
        return self._run(graph, tensors if order is None else [tensors[place] for place in order], args, kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the forward it stands in for: pipelines look at it to learn which arguments a model takes."""
        return inspect.signature(self.plain)

    def _run(self, graph: Graph, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = self._weights.tensors()
        if inputs is None:
            return self._restructured(args, kwargs)
        if graph.entry.frozen:
            if self._frozen is None or not self._frozen.still(inputs):
                return self._missed("the weights were changed, and the graph has those it was built with inside", args, kwargs)
            inputs = []
        inputs += tensors
        try:
            return graph.run(inputs)
        except RuntimeError as error:
            return self._failed(graph, inputs, error, (args, kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Dispatcher:
        """A copied module is served too, with its own weights; libraries are shared, being stateless."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        memo[id(self)] = twin
        twin._module = copy.deepcopy(self._module, memo)
        twin.plain = type(twin._module).forward.__get__(twin._module)
        twin._refused, twin._jitted = None, None
        twin._weights = LiveWeights.unseen()  # the copy is not complete yet: look at its first call
        twin._frozen = None  # a copy's weights are others, as far as anybody can tell without reading them all
        return twin

    def __reduce__(self) -> Any:
        raise TypeError("a module with loaded graphs cannot be pickled; call aot.restore() on it first.")

    def _unseen(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call not seen before in this form: serve it if its canonical form is in the shape book."""
        convention = Convention(self.plain)
        try:
            signature, tensors = Signature.of(*convention.canonical(args, kwargs))
            order = convention.order(args, kwargs)
        except Unsupported as error:
            return self._missed(error.message, args, kwargs)
        if reason := self._context(tensors):
            return self._missed(reason, args, kwargs)
        graph = self._graphs.find(signature)
        if graph is None:
            return self._missed(self._graphs.nearest(signature), args, kwargs)
        if not torch.is_grad_enabled():  # with it on, whether a gradient is asked for may change between two calls
            with suppress(TypeError):  # an unhashable call is looked at every time
                self._known[key] = graph, None if order == list(range(len(tensors))) else order
        return self._run(graph, tensors, args, kwargs)

    def _context(self, tensors: list[torch.Tensor]) -> str | None:
        """What surrounds the call and would change its result, or None."""
        if torch.is_autocast_enabled(self._policy.device):
            return "the call is under autocast, built without"
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in [*tensors, *(self._weights.tensors() or ())]):
            return "a gradient is asked for, graphs have none (call under torch.inference_mode())"
        return None

    def _restructured(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's tree changed: go on if it is the same structure, else say what differs."""
        if self._refused is None or self._refused[0].tensors() is None:
            live = Fingerprint.of(self._module)
            reason = self._kind.fingerprint.differs(live)
            if reason is None:
                self._weights = LiveWeights(self._module)
                return self(*args, **kwargs)
            self._refused = LiveWeights(self._module), reason
        return self._missed(self._refused[1], args, kwargs)

    def _failed(self, graph: Graph, tensors: list[torch.Tensor], error: RuntimeError, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """The library refused its inputs, or could not compute. Only a weight can be wrong: the call itself was compared."""
        for (name, spec), tensor in zip(self._kind.weights, tensors, strict=False):
            if reason := spec.differs(TensorSpec.of(tensor)):
                return self._missed(f"weight {name}: {reason}", *call)
        raise LoadFailed(
            f"graph {graph.entry.file} failed: {str(error).splitlines()[0] if str(error) else 'no message'}",
            remedy="call aot.restore() to go on without it, and build it again.",
        ) from error

    def _missed(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        policy = self._policy
        policy.ledger.missed(policy.on_miss.sentence(policy.component, reason))
        match policy.on_miss:
            case OnMiss.ERROR:
                raise Miss(f"{policy.component}: {reason}.", remedy="add this call's shape to the build, or choose on_miss.")
            case OnMiss.EAGER:
                return self.plain(*args, **kwargs)
            case OnMiss.COMPILE:
                if self._jitted is None:
                    self._jitted = policy.jit(self.plain)
                return self._jitted(*args, **kwargs)


def _identity(value: Any, tensors: list[torch.Tensor]) -> Any:
    """What tells one call from another, quickly; its tensors are appended to `tensors` in order."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return (value.shape, value.stride(), value.dtype, value.device)
    kind = type(value)
    if kind is dict:
        return (kind, *[(key, _identity(item, tensors)) for key, item in value.items()])
    if kind is tuple or kind is list:
        return (kind, *[_identity(item, tensors) for item in value])
    return (kind, value)  # the type too: True, 1 and 1.0 are equal
