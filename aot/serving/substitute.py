"""Substitute: what Dynamo is given in the place of a graph that it has traced: an artifact's graph, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any, TypeAlias

import torch

from aot.artifact.certificate import TOLERANCE, compare, tolerance
from aot.artifact.ledger import Ledger
from aot.artifact.runner import Graph
from aot.errors import Unsupported, first_line
from aot.model.signature import Form, Signature, TensorSpec, dtype_named
from aot.model.weights import WeightForms, unfit
from aot.request.mode import Mode
from aot.serving.dispatch import GRADIENT, OnMiss
from aot.serving.sealed import Part
from aot.serving.surroundings import Surroundings, surroundings

Place: TypeAlias = "int | torch.Tensor"  # which input of the traced graph, or what stands for one that it does not read
Traced: TypeAlias = Callable[..., Any]
_C: Any = torch._C  # private names, checked on torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0: `_len_torch_function_stack`, `DisableTorchFunction`


@dataclass(frozen=True, slots=True)
class Places:
    """Where among the inputs of a traced graph the weights and the tensors of the call are. `fixed`: all of the call's numbers are
    those of `form`, and its sizes cannot change."""

    weights: tuple[Place, ...]
    tensors: tuple[Place, ...]
    form: Form
    fixed: bool
    collecting: frozenset[str] = frozenset()  # what a model of transformers around it could collect of its submodules

    @classmethod
    def of(cls, inputs: Sequence[Any], weights: Sequence[torch.Tensor], signature: Signature, tensors: Sequence[torch.Tensor]) -> Places:
        """By identity. Raises Unsupported where the traced graph takes anything else."""
        places = {id(value): place for place, value in enumerate(inputs) if isinstance(value, torch.Tensor)}
        fixed = len(places) == len(inputs)
        known = {id(tensor) for tensor in (*weights, *tensors)}
        for value in inputs:
            if isinstance(value, torch.Tensor) and id(value) not in known:
                raise Unsupported(f"it reads a tensor ({TensorSpec.of(value)}) that is none of its weights and not given to the call.")
            if not isinstance(value, torch.Tensor | torch.SymInt):
                raise Unsupported(f"it reads a {type(value).__name__} that may change from call to call.")
        if not fixed and (any(id(tensor) not in places for tensor in tensors) or any(_numbers(signature.form))):
            raise Unsupported("its sizes were traced as open, and so may its numbers be: call torch.compile with dynamic=False.")
        held, given = (tuple(places[id(t)] if id(t) in places else _unread(t) for t in some) for some in (weights, tensors))
        return cls(held, given, signature.form, fixed)


def _unread(tensor: torch.Tensor) -> torch.Tensor:
    """What is handed over in the place of `tensor`, which what was traced does not read: a graph that reads it gives no numbers."""
    spec = TensorSpec.of(tensor)
    dtype = dtype_named(spec.dtype)
    filling = nan if dtype.is_floating_point or dtype.is_complex else 0
    return torch.full((spec.span,), filling, dtype=dtype, device=tensor.device).as_strided(spec.shape, spec.stride)


def _numbers(form: Form) -> Iterator[Any]:
    """The numbers in a call's form: what Dynamo may leave open."""
    match form:
        case ("value", _, value):
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield value
        case _:
            for part in form:
                if isinstance(part, tuple):
                    yield from _numbers(part)


@dataclass(slots=True)
class _Run:
    """A form of call that a graph serves: the specs of its tensors, how the graph takes those that lie otherwise, and which of its
    results the traced graph returns, once that was seen; `refused`: why it does not serve after all."""

    graph: Graph
    named: list[tuple[str, TensorSpec]]
    moved: dict[int, TensorSpec]
    order: tuple[int, ...] | None = None
    refused: str = ""


class Substitute:
    """Called by Dynamo with the inputs of a traced graph, whenever its guards and ours hold.

    The first call of each form is computed by the traced graph too, eagerly, and compared: the artifact's serves only after it gave the
    same. What it does not serve is answered by the traced graph, compiled or eager as `on_miss` says.
    """

    def __init__(self, part: Part, places: Places, answer: Answer, *, device: str, mode: Mode) -> None:
        """`device`: the type of device whose autocast would change a result."""
        self._part, self._places, self._answer, self._device = part, places, answer, device
        self._plain: Surroundings | None = None  # those of the last call that a graph could answer in
        dtype = next((spec.dtype for _, spec in part.kind.weights if spec.dtype in TOLERANCE), "float32")
        self._allowed = tolerance(mode, dtype)
        self._known: dict[Any, _Run | str] = {}
        self._forms: dict[torch.device, WeightForms] = {}

    def __call__(self, *inputs: Any) -> Any:
        weights, tensors = ([inputs[p] if isinstance(p, int) else p for p in some] for some in (self._places.weights, self._places.tensors))
        around = surroundings(self._device)
        if around != self._plain and (reason := around.refuses_below(self._places.collecting)):
            return self._missed(reason, inputs)
        self._plain = around
        if around.gradients and any(tensor.requires_grad for tensor in (*weights, *tensors)):
            return self._missed(GRADIENT, inputs)
        key = tuple([(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors])
        run = self._known.get(key) or self._known.setdefault(key, self._find(tensors))
        if isinstance(run, str):
            return self._missed(run, inputs)
        if reason := run.refused or self._unfit(run, weights, tensors):
            return self._missed(reason, inputs)
        laid = [run.moved[place].lay_out(tensor) if place in run.moved else tensor for place, tensor in enumerate(tensors)]
        try:
            if run.order is None:
                return self._proved(run, [*weights, *laid], inputs)
            results = run.graph.run_flat([*weights, *laid])
        except torch.OutOfMemoryError:  # what eager would raise too, and servers wait for
            raise
        except RuntimeError as error:
            return self._missed(f"graph {run.graph.entry.file} failed: {first_line(error)}", inputs)
        run.graph.hits += 1
        return tuple([results[place] for place in run.order])

    def _find(self, tensors: list[torch.Tensor]) -> _Run | str:
        try:
            signature = Signature(self._places.form, tuple(map(TensorSpec.of, tensors)))
        except Unsupported as error:
            return error.message
        return found_for(self._part, signature)

    def _unfit(self, run: _Run, weights: list[torch.Tensor], tensors: list[torch.Tensor]) -> str | None:
        """Why the graph cannot take these, or None. Dynamo guards most of it; the memory behind them it does not."""
        device = run.graph.device
        forms = self._forms.get(device) or self._forms.setdefault(device, WeightForms(self._part.kind.weights, device))
        pairs = zip(run.named, tensors, strict=True)
        return forms.refuses(weights) or next((f"{name} {why}" for (name, spec), t in pairs if (why := unfit(t, spec, device))), None)

    def _proved(self, run: _Run, given: list[torch.Tensor], inputs: tuple[Any, ...]) -> Any:
        """The answer of the traced graph, which the artifact's graph is compared with."""
        expected = self._answer.eager(*inputs)
        found = matched(expected, run.graph.run_flat(given), inputs, allowed=self._allowed)
        if isinstance(found, str):
            run.refused = found
            return self._missed(found, inputs)
        run.order = found
        run.graph.hits += 1
        return expected

    def _missed(self, reason: str, inputs: tuple[Any, ...]) -> Any:
        instead = self._answer.instead(reason)
        # what was traced has what such a mode does in it: it is not to be done again, as it would where that is traced again
        return (self._answer.eager if _C._len_torch_function_stack() else instead)(*inputs)


def as_traced(graph: Traced) -> Traced:
    """A graph that Dynamo has traced, run eagerly and as it is written: what torch function modes did to it is in it."""

    def run(*inputs: Any) -> Any:
        with _C.DisableTorchFunction():
            return graph(*inputs)

    return run


@dataclass(slots=True)
class Answer:
    """What answers in the place of an artifact's graph. `component`: whose call it is."""

    component: str
    on_miss: OnMiss
    ledger: Ledger
    eager: Traced
    compiled: Callable[[], Traced]
    _made: Traced | None = field(default=None, init=False)

    def instead(self, reason: str) -> Traced:
        """Raises Miss under `on_miss="error"`."""
        self.ledger.missed(self.on_miss.sentence(self.component, reason))
        match self.on_miss:
            case OnMiss.ERROR:
                raise OnMiss.as_error(self.component, reason)
            case OnMiss.EAGER:
                return self.eager
            case OnMiss.COMPILE:
                self._made = self._made or self.compiled()
                return self._made


def found_for(part: Part, signature: Signature) -> _Run | str:
    """The graph for calls of `signature`, or why there is none."""
    found = part.graphs.find(signature)
    if found is None:
        return part.graphs.nearest(signature)
    graph, built = found
    if reason := _unsuited(graph):
        return reason
    moved = {place: spec for place, spec in enumerate(built.specs) if spec != signature.specs[place]}
    return _Run(graph, signature.named(), moved)


def _unsuited(graph: Graph) -> str | None:
    """What a graph does that cannot be put in the place of a part of Dynamo's own code, in words, or None."""
    entry = graph.entry
    reasons = (
        (entry.frozen, "its graph has the weights inside, which Dynamo's guards do not compare: use compile_pipe"),
        (graph.writes or entry.mutates, "its graph writes into what it is called with: use compile_pipe"),
        (entry.slots, "its graph has room for adapters, which compile_pipe alone fills"),
    )
    return next((reason for holds, reason in reasons if holds), None)


def matched(expected: Any, results: list[torch.Tensor], inputs: Sequence[Any], *, allowed: float) -> tuple[int, ...] | str:
    """Which of a graph's results is each that the traced graph returns; or why that cannot be said."""
    places = []
    for place, one in enumerate(expected):
        if not isinstance(one, torch.Tensor):
            return f"what was traced returns a {type(one).__name__}, graphs return tensors"
        errors = [compare(result, one).relative_l2 if _like(result, one) else None for result in results]
        alike = [index for index, error in enumerate(errors) if error is not None and error <= allowed]
        if not alike:
            least = min((error for error in errors if error is not None), default=None)
            far = "none is of its form" if least is None else f"relative L2 {least:.1e}, allowed are {allowed:.0e}"
            return f"the artifact's results are not what was traced for this very call (result {place}: {far})"
        if len(alike) > 1:
            return f"result {place} cannot be told from another one of the same numbers"
        places += alike
    if _share(expected, inputs):
        return "its results share memory, with one another or with what it is called with"
    return tuple(places)


def _like(result: torch.Tensor, one: torch.Tensor) -> bool:
    mine, theirs = TensorSpec.of(result), TensorSpec.of(one)
    return mine.shape == theirs.shape and mine.seen_by(theirs) == theirs


def _share(results: Sequence[torch.Tensor], inputs: Sequence[Any]) -> bool:
    """Whether a later write to one of `results` would be seen in another, or in an input: of a graph's own results it may not be."""
    given = {value.untyped_storage().data_ptr() for value in inputs if isinstance(value, torch.Tensor)}
    taken: dict[int, torch.Tensor] = {}
    for result in results:
        storage = result.untyped_storage()
        if storage.data_ptr() in given:
            return True
        marks = taken.setdefault(storage.data_ptr(), torch.zeros(storage.nbytes() // result.itemsize, dtype=torch.bool))
        if marks.numel() * result.itemsize != storage.nbytes():  # seen as of another dtype
            return True
        part = marks.as_strided(result.shape, result.stride(), result.storage_offset())
        if bool(part.any()):
            return True
        part.fill_(True)
    return False
