"""Sizes: what of a call is left open to the compiler, and which calls a program then serves.

Private names of torch, checked on 2.14.1: what `torch.export` keeps of sizes (`shape_env`) behind the fakes that it traced with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from aot.artifact.promise import Pattern, Promise
from aot.model.axes import Axes
from aot.model.formula import Formula
from aot.model.signature import Signature


def along(axes: Axes) -> list[Any]:
    """`torch.export`'s dynamic shapes of the tensors of calls along `axes`: the compiler finds what varies with what."""
    return [{axis: Dim.AUTO(min=least, max=most) for axis, (least, most) in varying.items()} or None for varying in axes.varying()]


def promise(program: torch.export.ExportedProgram, axes: Axes, signature: Signature) -> Promise:
    """Which calls a program serves: the sizes and strides of its inputs as tracing found them, and what the model's code took for
    granted of them. Raises Unsupported where that cannot be checked at a call."""
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
    hard = guards(program, of_layouts=False)
    made = Promise(signature.form, patterns, tuple((name, *found) for name, found in sorted(ranges.items())), hard)
    made.check()
    return made


def _inputs_of(program: torch.export.ExportedProgram) -> list[Any]:
    """The fakes that a program was traced with, weights first."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]


def _sizes(program: torch.export.ExportedProgram) -> Any:
    """Where torch keeps what it knows of sizes."""
    return _inputs_of(program)[-1].fake_mode.shape_env


# where torch asks whether a tensor is a view of another: it treats sizes that are equal, or divide another, in a shorter way, and
# all others in one that holds for these too. What the model itself asks in such words may hide behind it
_OF_LAYOUTS = ("/torch/_refs/__init__.py", "/torch/_prims/__init__.py", "/torch/_prims_common/__init__.py")


def guards(program: torch.export.ExportedProgram, *, of_layouts: bool = True) -> tuple[Formula, ...]:
    """Everything that was taken for granted of sizes up to now; or all of it but what torch took for unequal where it looked at how
    tensors lie in memory."""
    known = _sizes(program)
    kept = [guard for guard in known.guards if of_layouts or not _of_layout(guard)]
    found = [known.simplify(guard.expr) for guard in kept]
    return tuple(dict.fromkeys(Formula(str(guard)) for guard in found if guard != True))  # noqa: E712 - sympy's own truth


def _of_layout(guard: Any) -> bool:
    where = getattr(guard.sloc.framework_loc, "filename", "")
    return type(guard.expr).__name__ == "Unequality" and str(where).endswith(_OF_LAYOUTS)
