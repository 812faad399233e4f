"""Wrapper: what AOTInductor's C++ source says of its graph: the inputs that it checks, the weights that it wants, how it is called.

The source is read as text, by the forms in which torch writes it; checked on 2.11.0, 2.14.1 and 2.15.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from aot.cache_store.errors import Malformed
from aot.model.signature import TensorSpec

_CONSTANT = re.compile(r"constants_info_\[(\d+)\]\.(\w+) = ([^;]*);")
_CHECK = re.compile(r"static void check_input_(\d+)\((.*?)\n\}", re.DOTALL)
_DTYPE, _DEVICE = re.compile(r"_expected_dtype = aoti_torch_dtype_(\w+)\(\)"), re.compile(r"<< \"\d+\((\w+)\), \"")
_EQUAL = re.compile(r"if \((-?\d+)L? != \w+_(size|stride)\[(\d+)\]\)")
_LEAST, _MOST = re.compile(r"\w+_size\[(\d+)\] < (\d+)"), re.compile(r"\w+_size\[(\d+)\] > (\d+)")
_SPEC = re.compile(r"(in|out)_spec_ = ((?:R\"\(.*?\)\"\s*)+);", re.DOTALL)
_PIECE = re.compile(r"R\"\((.*?)\)\"", re.DOTALL)
_MODEL = re.compile(r"AOTInductorModelBase\((\d+),\s*(\d+),\s*(\d+),")


@dataclass(frozen=True, slots=True)
class Input:
    """What a graph checks of one tensor of a call. `sizes`: of each axis the least and the most; `strides`: None where any is taken."""

    dtype: str
    sizes: tuple[tuple[int, int | None], ...]
    strides: tuple[int | None, ...]

    def refuses(self, spec: TensorSpec) -> str | None:
        """Why a tensor of that spec is none that it takes, in words, or None."""
        if spec.dtype != self.dtype:
            return f"dtype is {spec.dtype}, built for {self.dtype}"
        if len(spec.shape) != len(self.sizes):
            return f"shape is {spec.shape}, built for {len(self.sizes)} axes"
        for axis, (size, (least, most)) in enumerate(zip(spec.shape, self.sizes, strict=True)):
            if size < least or (most is not None and size > most):
                return f"shape is {spec.shape}, axis {axis} built for {_range(least, most)}"
        for axis, (stride, built) in enumerate(zip(spec.stride, self.strides, strict=True)):
            if built is not None and stride != built and spec.shape[axis] > 1:
                return f"stride is {spec.stride}, axis {axis} built for {built}"
        return None

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(_range(*axis) for axis in self.sizes)}]"

    def least(self, device: str) -> TensorSpec:
        """The smallest tensor that it takes."""
        shape = tuple(least for least, _ in self.sizes)
        strides, step = list[int](), 1
        for size, stride in zip(reversed(shape), reversed(self.strides), strict=True):
            strides.insert(0, step if stride is None else stride)
            step = max(step, strides[0] * size)
        return TensorSpec(shape, tuple(strides), self.dtype, device)


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A graph, by its source."""

    device: str
    inputs: tuple[Input, ...]
    weights: tuple[tuple[str, TensorSpec], ...]
    call: Any
    returns: Any

    @classmethod
    def parse(cls, source: str) -> Self:
        """Raises Malformed where it does not say what the graph takes."""
        model = _MODEL.search(source)
        specs = {which: "".join(_PIECE.findall(pieces)) for which, pieces in _SPEC.findall(source)}
        if model is None or {*specs} != {"in", "out"}:
            raise Malformed("its source does not say how it is called.")
        try:
            call, returns = json.loads(specs["in"]), json.loads(specs["out"])
        except (ValueError, RecursionError) as error:
            raise Malformed(f"its source says in no JSON how it is called: {error}.") from error
        checks = {int(place): text for place, text in _CHECK.findall(source)}
        wanted, _, held = map(int, model.groups())
        if {*checks} != {*range(wanted)}:
            raise Malformed(f"its source checks {len(checks)} of its {wanted} inputs, and so does not say what they are.")
        weights = tuple(_weights(source))
        if len(weights) > held:
            raise Malformed("its source names more weights than it has.")
        device = next((spec.device for _, spec in weights), "")
        devices = {found for text in checks.values() for found in _DEVICE.findall(text) if not found.startswith("k")}
        return cls(device or min(devices, default=""), tuple(_input(checks[place]) for place in range(wanted)), weights, call, returns)


def _range(least: int, most: int | None) -> str:
    return str(least) if least == most else f"{least}-{'' if most is None else most}"


def _input(check: str) -> Input:
    """By the code that checks it."""
    dtype = _DTYPE.search(check)
    if dtype is None:
        raise Malformed("its source does not say the dtype of an input.")
    exact = [(kind, int(axis), int(value)) for value, kind, axis in _EQUAL.findall(check)]
    least = {int(axis): int(value) for axis, value in _LEAST.findall(check)}
    most = {int(axis): int(value) for axis, value in _MOST.findall(check)}
    sizes = {axis: value for kind, axis, value in exact if kind == "size"}
    strides = {axis: value for kind, axis, value in exact if kind == "stride"}
    rank = 1 + max([*sizes, *strides, *least, *most], default=-1)
    ranges = tuple((sizes[axis], sizes[axis]) if axis in sizes else (least.get(axis, 0), most.get(axis)) for axis in range(rank))
    return Input(dtype[1], ranges, tuple(strides.get(axis) for axis in range(rank)))


def _weights(source: str) -> Iterator[tuple[str, TensorSpec]]:
    """Those that are given to it by name; what it folds of them itself is not."""
    found: dict[int, dict[str, str]] = {}
    for place, what, value in _CONSTANT.findall(source):
        found.setdefault(int(place), {})[what] = value.strip()
    for place, said in sorted(found.items()):
        if said.get("from_folded") == "true":
            continue
        try:
            name = said["original_fqn"].strip('"')
            shape, stride = _numbers(said["shape"]), _numbers(said["stride"])
            spec = TensorSpec(shape, stride, said["dtype"].rpartition("dtype_")[2], said["device_type"].rpartition("type_")[2])
        except (KeyError, ValueError) as error:
            raise Malformed(f"its source does not say what its weight {place} is.") from error
        if not name or not spec.dtype.isidentifier() or not spec.device.isidentifier() or len(shape) != len(stride):
            raise Malformed(f"its source does not say what its weight {place} is.")
        yield name, spec


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part.strip().rstrip("Ll")) for part in text.strip("{} ").split(",") if part.strip())
