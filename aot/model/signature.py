"""Signature: the identity of a call. Its structure, and per tensor shape, stride, dtype and device, per other value the value."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import numpy
import torch

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.errors import Unsupported

Form: TypeAlias = tuple[Any, ...]  # hashable: ("tensor",) | ("value", type, v) | ("tuple" | "list", …) | ("dict", …) | ("output", class, …)

_PLAIN = (bool, int, float, str)
_OUTPUTS_FROM = ("diffusers.", "transformers.")  # whose output classes a graph may return


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a compiled graph knows of a tensor. `shape` and `stride` in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    device: str  # the type, without index

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """The spec of `tensor`, strides of dimensions of size 1 included: compiled code relies on them too. Raises Unsupported
        for one that is not strided."""
        if tensor.layout is not torch.strided:
            raise Unsupported(f"a tensor is {str(tensor.layout).removeprefix('torch.')}, and graphs take strided ones.")
        return cls(tuple(tensor.shape), tensor.stride(), str(tensor.dtype).removeprefix("torch."), tensor.device.type)

    def to_json(self) -> list[Any]:
        return [list(self.shape), list(self.stride), self.dtype, self.device]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Self:
        shape, stride, dtype, device = value
        return cls(tuple(shape), tuple(stride), dtype, device)

    @property
    def span(self) -> int:
        """How many elements lie from its first to its last in memory: fewer than its size where it is expanded (stride 0)."""
        return 0 if 0 in self.shape else 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def overlaps(self) -> bool:
        """Whether elements may share memory, as those of an expanded tensor do: then it cannot be written to."""
        axes = sorted((step, size) for size, step in zip(self.shape, self.stride, strict=True) if size > 1)
        reach = 1
        for step, size in axes:
            if step < reach:
                return True
            reach = step * (size - 1) + reach
        return False

    def lies_like(self, other: TensorSpec) -> bool:
        """Whether a copy of a tensor of the spec `other` can be one of this: all but the strides is equal."""
        return self == other or (replace(self, stride=other.stride) == other and not self.overlaps)

    def seen_by(self, other: TensorSpec) -> TensorSpec:
        """With the strides of `other`, of the same rank, along axes of size 1 or 0, which lead nowhere."""
        pairs = zip(self.shape, self.stride, other.stride, strict=True)
        return replace(self, stride=tuple(theirs if size < 2 else mine for size, mine, theirs in pairs))

    def lay_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, which is of this spec but for its strides, with these: the same memory where they lead to it, else a copy."""
        if TensorSpec.of(tensor).seen_by(self).stride == self.stride:
            return tensor.as_strided(self.shape, self.stride)
        return self.copied(tensor)

    def copied(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor of this spec but for its strides, that has them."""
        return torch.empty_strided(self.shape, self.stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

    def blank(self) -> torch.Tensor:
        """As `zeros`, on a CPU of memory that nothing has touched yet: the system's own zeros, which cost nothing until written to."""
        if self.device != "cpu" or not self.span:
            return self.zeros()
        dtype = dtype_named(self.dtype)
        flat = torch.from_numpy(numpy.zeros(self.span * dtype.itemsize, numpy.uint8)).view(dtype)
        return flat.as_strided(self.shape, self.stride)

    def zeros(self) -> torch.Tensor:
        """A tensor of this spec; an expanded one (stride 0) too."""
        flat = torch.zeros(self.span, dtype=dtype_named(self.dtype), device=self.device)
        return flat.as_strided(self.shape, self.stride)

    def differs(self, other: TensorSpec) -> str | None:
        """The first field in which `other` differs, in words, or None."""
        for field in ("dtype", "device", "shape", "stride"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                return f"{field} is {theirs}, built for {mine}"
        return None


def dtype_named(name: Any) -> torch.dtype:
    """The dtype of that name. Raises Unsupported: torch has much else under its names."""
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise Unsupported(f"{name!r} is no dtype of torch {torch.__version__}.")
    return found


def flatten(value: Any, tensors: list[torch.Tensor]) -> Form:
    """The form of `value`; its tensors are appended to `tensors` in order. Raises Unsupported for what has no stable identity."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return ("tensor",)
    if value is None or isinstance(value, _PLAIN):
        return ("value", type(value).__name__, value)
    if isinstance(value, torch.dtype):
        return ("dtype", str(value).removeprefix("torch."))
    kind = type(value)
    if kind in (tuple, list):
        return (kind.__name__, *(flatten(item, tensors) for item in value))
    if isinstance(value, dict):
        name = "dict" if kind is dict else f"{kind.__module__}:{kind.__qualname__}"
        known = kind is dict or kind.__module__.startswith(_OUTPUTS_FROM)
        if known and all(isinstance(key, str) for key in value):
            return ("dict", name, *((key, flatten(item, tensors)) for key, item in value.items()))
    raise Unsupported(f"a call holds a {kind.__qualname__}, which has no identity that can be compared between processes.")


def fill(form: Form, tensors: Iterator[Any]) -> Any:
    """The value of `form`, its tensors taken from `tensors` in order: the inverse of `flatten`."""
    match form:
        case ("tensor",):
            return next(tensors)
        case ("value", _, value):
            return value
        case ("dtype", name):
            return dtype_named(name)
        case ("tuple", *items):
            return tuple(fill(item, tensors) for item in items)
        case ("list", *items):
            return [fill(item, tensors) for item in items]
        case ("dict", name, *items):
            return _mapping(name)({key: fill(item, tensors) for key, item in items})
        case _:
            raise Unsupported(f"unknown form {form!r} in a signature.")


def _mapping(name: str) -> Callable[[dict[str, Any]], Any]:
    """`dict`, or the output class of diffusers or transformers that a graph returns."""
    if name == "dict":
        return dict
    module, _, qualname = name.partition(":")
    if not module.startswith(_OUTPUTS_FROM):
        raise Unsupported(f"a graph returns a {name}, which is no output class of diffusers or transformers.")
    found = getattr(importlib.import_module(module), qualname, None)
    if not (isinstance(found, type) and issubclass(found, dict)):
        raise Unsupported(f"a graph returns a {name}, which is no output class.")
    return lambda fields: found(**fields)


def form_to_json(form: Form) -> list[Any]:
    return [form_to_json(part) if isinstance(part, tuple) else part for part in form]


def form_from_json(value: Sequence[Any]) -> Form:
    return tuple(form_from_json(part) if isinstance(part, list) else part for part in value)


@dataclass(frozen=True, slots=True)
class Signature:
    """The identity of one call: the form of `(args, kwargs)` and the specs of its tensors in order."""

    form: Form
    specs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        return " ".join(map(str, self.specs))

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Self, list[torch.Tensor]]:
        """The signature of a call and its tensors, in the signature's order. Raises Unsupported."""
        tensors: list[torch.Tensor] = []
        form = flatten((args, kwargs), tensors)
        return cls(form, tuple(map(TensorSpec.of, tensors))), tensors

    @property
    def digest(self) -> Digest:
        return Digest.of(encode(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        return {"form": form_to_json(self.form), "specs": [spec.to_json() for spec in self.specs]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(form_from_json(value["form"]), tuple(map(TensorSpec.from_json, value["specs"])))

    def zeros(self) -> list[torch.Tensor]:
        """Tensors of this signature."""
        return [spec.zeros() for spec in self.specs]

    def call(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, with these tensors in their places."""
        args, kwargs = fill(self.form, iter(tensors))
        return args, kwargs

    def seen_by(self, other: Signature) -> Signature:
        """With the strides of `other`, a call of the same form and ranks, where they lead nowhere."""
        return replace(self, specs=tuple(mine.seen_by(theirs) for mine, theirs in zip(self.specs, other.specs, strict=True)))

    @property
    def memory(self) -> Signature:
        """The same for all calls whose tensors lie alike in memory: without strides that lead nowhere."""
        return self.seen_by(Signature(self.form, tuple(replace(spec, stride=(0,) * len(spec.stride)) for spec in self.specs)))

    def lies_like(self, other: Signature) -> bool:
        """Whether copies of the tensors of a call of `other` can be those of one of this."""
        return self.form == other.form and all(mine.lies_like(theirs) for mine, theirs in zip(self.specs, other.specs, strict=True))

    def named(self) -> list[tuple[str, TensorSpec]]:
        """The specs by the dotted name of their argument."""
        return list(zip((name for name, leaf in leaves(self.form) if leaf == "a tensor"), self.specs, strict=True))

    def differs(self, other: Signature) -> str | None:
        """The first field in which `other` differs, in words, or None."""
        if reason := forms_differ(self.form, other.form):
            return reason
        for (name, mine_spec), theirs_spec in zip(self.named(), other.specs, strict=True):
            if found := mine_spec.differs(theirs_spec):
                return f"{name}.{found}"
        return None


def forms_differ(built: Form, live: Form) -> str | None:
    """The first leaf in which the form `live` of a call differs, in words, or None."""
    if (mine := dict(leaves(built))) == (theirs := dict(leaves(live))):
        return None
    name = next(name for name in [*theirs, *mine] if mine.get(name) != theirs.get(name))
    return f"{name} is {theirs.get(name, 'absent')}, built for {mine.get(name, 'absent')}"


def leaves(form: Form, name: str = "") -> Iterator[tuple[str, str]]:
    """The dotted name and a description of every leaf of a call's form; its own two levels, args and kwargs, go unnamed."""
    match form:
        case ("tensor",):
            yield name, "a tensor"
        case ("value", _, value) | ("dtype", value):
            yield name, repr(value)
        case ("dict", _, *items):
            for key, item in items:
                yield from leaves(item, f"{name}.{key}".lstrip("."))
        case ("tuple" | "list", *items):
            for index, item in enumerate(items):
                keep_unnamed = name == "" and item[0] == "dict"
                yield from leaves(item, "" if keep_unnamed else f"{name}.{index}".lstrip("."))
        case _:
            yield name, repr(form)
