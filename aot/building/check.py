"""Check: compare what was compiled with eager, run exactly as it will be when loaded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from aot.artifact.book import Book, GraphEntry
from aot.artifact.certificate import TOLERANCE, check, compare, tolerance
from aot.artifact.golden import eager, noise
from aot.artifact.ledger import Ledger
from aot.artifact.runner import Graph
from aot.building.plan import Plan, Unit
from aot.errors import BuildFailed
from aot.machine.device import wait_for_device
from aot.model.capture import Call, in_dtype
from aot.model.casting import casts, take_off
from aot.model.fingerprint import Fingerprint
from aot.model.signature import Signature, TensorSpec
from aot.model.twin import twin
from aot.model.weights import LiveWeights
from aot.model.wrapped import assemblies
from aot.model.writes import Results
from aot.request.mode import Mode
from aot.serving.dispatch import OnMiss, ServedBy
from aot.serving.load import sites
from aot.serving.standin import take_away

Measured: TypeAlias = dict[str, Any]

# What a graph's error may be of eager's own, where that is the larger; and in which dtype eager is taken to be exact. A graph rounds
# to a half format once where eager does after every operation, so of these it is eager that is further off.
_TIMES_EAGER = {torch.float32: (10, torch.float64), torch.bfloat16: (2, torch.float32), torch.float16: (2, torch.float32)}
# a sum that differs in its last bit rounds an activation to another one of 255 numbers: 3e-4 was measured of a whole model;
# GGUF's own scales are products of two half-precision numbers, which a graph does not round: 5e-4 of a layer
_ROUNDED = 1e-2


def check_graphs(
    plan: Plan, book: Book, graphs: list[Graph], *, device: str, mode: Mode, measured: Measured
) -> tuple[dict[str, Any], Book]:
    """Compare each component, run through its graphs exactly as it will be when loaded, with eager. Raises OutsideTolerance.

    All of eager comes first: a graph left in place would be compared with itself. Where eager keeps something of its first calls,
    what it computes with that is compared too. Returns the certificate, and the book with what eager kept.
    """
    calls = plan.calls
    with torch.inference_mode():
        expected = [_expected(plan, call) for call in calls]
        book = _settled(plan, book)
        again = [timed(plan, call) for call in calls] if any(kind.settled for kind in book.kinds.values()) else []
        for (name, _), site in sites(book, graphs, plan.modules).items():
            site.serve(ServedBy(name, device, OnMiss.ERROR, lambda function: function, Ledger()))
        try:
            served = [timed(plan, call) for call in calls]
        finally:
            for module in plan.modules.values():
                take_away(module)
    names = list(map(str, calls))
    measured["eager_first_call_s"] = dict(zip(names, (seconds for _, seconds in expected), strict=True))
    measured["graph_first_call_s"] = dict(zip(names, (seconds for _, seconds in served), strict=True))
    compared = []
    for call, (got, _), (wanted, _) in [*zip(calls, served, expected, strict=True), *zip(calls, served, again, strict=False)]:
        comparison, allowed = compare(got, wanted), tolerance(mode, _precision(call.dtype, got[-1]))
        if comparison.relative_l2 > allowed:
            allowed = max(allowed, _inherent(plan, call, wanted))
        check(comparison, what=str(call), allowed=allowed)
        compared.append({"call": str(call), "tolerance_relative_l2": allowed, **comparison.to_json()})
    compared += check_alone(plan, book, graphs, mode, own=False)
    return {"tolerance_relative_l2": max(each["tolerance_relative_l2"] for each in compared), "calls": compared}, book


def _settled(plan: Plan, book: Book) -> Book:
    """The book with what eager's first calls, which are over, have left in the modules."""
    modules = {plan.fingerprints[path].digest: module for path, module in plan.modules.items()}
    modules |= {digest: found.module for digest, found in plan.kinds.items()}
    kinds = {
        digest: replace(kind, settled=Fingerprint.of(modules[digest]).without(kind.unread).since(kind.fingerprint))
        for digest, kind in book.kinds.items()
    }
    return replace(book, kinds=kinds)


class Runs(Protocol):
    """What answers to weights and a call's tensors as an entry of the book says."""

    entry: GraphEntry

    def run_flat(self, inputs: list[torch.Tensor], /) -> list[torch.Tensor]: ...


def check_alone(plan: Plan, book: Book, found: Sequence[Runs], mode: Mode, *, own: bool = True) -> list[dict[str, Any]]:
    """Compare with eager each by itself, on noise: at the ends of its range, which no call may have had, and at its `own` call. Raises
    OutsideTolerance, and BuildFailed where eager itself cannot be called there."""
    compared: list[dict[str, Any]] = []
    units = {(unit.component, unit.kind, unit.signature): unit for unit in plan.units}
    for one in found:
        entry = one.entry
        unit, ends = units[entry.component, entry.kind, entry.signature], entry.dynamic.ends() if entry.dynamic else ()
        signatures = (*([entry.signature] if own else ()), *ends)
        compared += [_at(one, plan.kinds[entry.kind].module, book, signature, unit, mode) for signature in signatures]
    return compared


def _at(graph: Runs, module: nn.Module, book: Book, signature: Signature, unit: Unit, mode: Mode) -> dict[str, Any]:
    """Compare one graph with eager at one signature, on noise."""
    what, entry = f"{unit.component} at {signature}", replace(graph.entry, signature=signature)
    tensors = [noise(spec, number, weight=False) for number, spec in enumerate(signature.specs)]
    names = [name for name, _ in book.inputs(entry)]

    def answer(dtype: torch.dtype) -> list[torch.Tensor]:
        """Eager's, with everything that is of floats in that dtype."""
        given = [tensor.to(dtype) if tensor.dtype == unit.dtype else tensor.clone() for tensor in tensors]
        with in_dtype(module, dtype), torch.inference_mode():
            return eager(module, names, entry, [*(LiveWeights(module, names).tensors() or []), *given])

    try:
        expected = answer(unit.dtype)
    except Exception as error:
        raise BuildFailed(
            f"{what}, an end of what was recorded, cannot be called: {type(error).__name__}: {error}",
            remedy="record calls that go together, or build without axes: a graph for each.",
        ) from error
    with in_dtype(module, unit.dtype), torch.inference_mode():
        inputs = [*(LiveWeights(module, names).tensors() or []), *tensors]  # none of a graph that has them inside
        comparison, allowed = compare(graph.run_flat(inputs), expected), tolerance(mode, _precision(unit.dtype, expected))
    if comparison.relative_l2 > allowed and assemblies(module):
        allowed = max(allowed, _ROUNDED)
    elif comparison.relative_l2 > allowed and unit.dtype in _TIMES_EAGER and not casts(module):
        times, exact = _TIMES_EAGER[unit.dtype]
        allowed = max(allowed, times * compare(expected, answer(exact)).relative_l2)
    check(comparison, what=what, allowed=allowed)
    return {"call": what, "tolerance_relative_l2": allowed, **comparison.to_json()}


def _inherent(plan: Plan, call: Call, expected: Any) -> float:
    """What no order of sums can be held to: a multiple of how far eager itself is from the same in a wider dtype; of quantised
    weights, which are in no other, what rounding may make of it."""
    module = plan.modules[call.component]
    if assemblies(module):
        return _ROUNDED
    dtype = next((cast.hook.compute_dtype for cast in casts(module)), call.dtype)
    if dtype not in _TIMES_EAGER:
        return 0.0
    times, wider = _TIMES_EAGER[dtype]
    wide = [tensor.to(wider) if tensor.is_floating_point() else tensor for tensor in call.tensors]
    plain = twin(module)
    take_off(plain)  # or its weights would be brought back to where they are kept
    with torch.no_grad():
        exact, _ = timed(replace(plan, modules={call.component: plain}), replace(call, dtype=wider, tensors=wide))
    return times * compare(expected, exact).relative_l2


def _precision(dtype: torch.dtype, answer: list[torch.Tensor]) -> str:
    """What is computed in: the dtype of the weights, or of the answer where that one is for keeping them."""
    names = [str(found).removeprefix("torch.") for found in (dtype, *(tensor.dtype for tensor in answer))]
    return next((name for name in names if name in TOLERANCE), "float32")


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that lies alike in memory; an expanded one itself, which nothing can write to."""
    spec = TensorSpec.of(tensor)
    return tensor if spec.overlaps else spec.copied(tensor)


def _expected(plan: Plan, call: Call) -> tuple[Any, float]:
    """What eager makes of a call. Raises BuildFailed where it makes nothing: a call that was recorded without data may be beyond what
    the model takes, and a run without data does not see it."""
    try:
        return timed(plan, call)
    except Exception as error:
        raise BuildFailed(
            f"{call} cannot be called: {type(error).__name__}: {error}", remedy="record calls that the model itself can compute."
        ) from error


def timed(plan: Plan, call: Call) -> tuple[Any, float]:
    """What a call returns and leaves in its arguments, and the seconds it took."""
    given = list(map(_copied, call.tensors))  # a call may write to its own
    args, kwargs = call.signature.call(given)
    module = plan.modules[call.component]
    with in_dtype(module, call.dtype):
        started = time.perf_counter()
        returned = module(*args, **kwargs)
        wait_for_device()
        seconds = round(time.perf_counter() - started, 4)
    results = Results.of(returned, (args, kwargs), call.signature.form, given)
    return (results.returned, results.writes, results.tensors), seconds
