"""Sizes: what of a call is left open to the compiler, and which calls a program then serves.

Private names of torch, checked on 2.14.1: what `torch.export` keeps of sizes (`shape_env`) behind the fakes that it traced with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from aot.artifact.dynamic import DynamicRange, Extent
from aot.artifact.promise import Pattern, Promise
from aot.model.axes import Axes
from aot.model.formula import Formula
from aot.model.signature import Signature


def symbols(dynamic: DynamicRange) -> list[Any]:
    """`torch.export`'s dynamic shapes of the range's tensors: multiples of a height and a width, or of their product.

    Where sizes are left out (`unless`), a multiple would be a promise that the model's own test of it breaks: there the
    compiler finds the relations itself, within the same bounds.
    """
    least, most = (dynamic.least**2, dynamic.most**2) if dynamic.by_area else (dynamic.least, dynamic.most)
    roots: dict[str, Any] = {}

    def symbol(extent: Extent) -> Any:
        if dynamic.unless:
            return Dim.AUTO(min=least * extent.factor, max=most * extent.factor)
        name = "h" * extent.by_height + "w" * extent.by_width
        root = roots.setdefault(name, Dim(name, min=least, max=most))
        return root if extent.factor == 1 else extent.factor * root

    found = []
    for pattern in dynamic.patterns:
        varying = {place: symbol(extent) for place, extent in enumerate(pattern.shape) if extent.by_height or extent.by_width}
        found.append(varying or None)
    return found


def along(axes: Axes) -> list[Any]:
    """`torch.export`'s dynamic shapes of the tensors of calls along `axes`: the compiler finds what varies with what."""
    return [{axis: Dim.AUTO(min=least, max=most) for axis, (least, most) in varying.items()} or None for varying in axes.varying()]


def promise(program: torch.export.ExportedProgram, axes: Axes, signature: Signature) -> Promise:
    """Which calls a program serves: the sizes and strides of its inputs as tracing found them, and what it took for granted of them.
    Raises Unsupported where that cannot be checked at a call."""
    known = _sizes(program)

    def extent(value: Any) -> int | Formula:
        found = known.simplify(value.node.expr) if isinstance(value, torch.SymInt) else value
        return int(found) if getattr(found, "is_number", True) else Formula(str(found))

    patterns = tuple(
        Pattern(tuple(map(extent, tensor.shape)), tuple(map(extent, tensor.stride())), spec.dtype, spec.device)
        for tensor, spec in zip(_inputs_of(program)[-len(signature.specs) :], signature.specs, strict=True)
    )
    ranges: dict[str, tuple[int, int]] = {}
    for pattern, varying in zip(patterns, axes.varying(), strict=True):
        for axis, (least, most) in varying.items():
            name = str(pattern.shape[axis])
            if name.isidentifier():
                before = ranges.get(name, (least, most))
                ranges[name] = max(least, before[0]), min(most, before[1])
    made = Promise(signature.form, patterns, tuple((name, *found) for name, found in sorted(ranges.items())), guards(program))
    made.check()
    return made


def _inputs_of(program: torch.export.ExportedProgram) -> list[Any]:
    """The fakes that a program was traced with, weights first."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]


def _sizes(program: torch.export.ExportedProgram) -> Any:
    """Where torch keeps what it knows of sizes."""
    return _inputs_of(program)[-1].fake_mode.shape_env


def guards(program: torch.export.ExportedProgram) -> tuple[Formula, ...]:
    """Everything that was taken for granted of sizes up to now."""
    known = _sizes(program)
    found = [known.simplify(guard.expr) for guard in known.guards]
    return tuple(dict.fromkeys(Formula(str(guard)) for guard in found if guard != True))  # noqa: E712 - sympy's own truth
