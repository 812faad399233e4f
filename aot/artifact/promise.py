"""Promise: the many signatures that one graph serves, as tracing found them: each size a formula of symbols, with a range each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any, Self, TypeAlias

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.errors import Unsupported
from aot.model.formula import Formula
from aot.model.signature import Form, Signature, TensorSpec, form_from_json, form_to_json, forms_differ

Extent: TypeAlias = int | Formula  # a size or stride in elements
_ENDS = 6  # of the ranges of several symbols together, compared with eager: all least, all largest, and some between


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a graph knows of a tensor: a TensorSpec whose sizes and strides may be formulas."""

    shape: tuple[Extent, ...]
    stride: tuple[Extent, ...]
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def at(self, values: Mapping[str, int]) -> TensorSpec:
        shape, stride = (tuple(_at(extent, values) for extent in extents) for extents in (self.shape, self.stride))
        return TensorSpec(shape, stride, self.dtype, self.device)

    def to_json(self) -> list[Any]:
        return [*([_to_json(extent) for extent in extents] for extents in (self.shape, self.stride)), self.dtype, self.device]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Self:
        shape, stride = (tuple(map(_from_json, extents)) for extents in value[:2])
        return cls(shape, stride, value[2], value[3])


@dataclass(frozen=True, slots=True)
class Promise:
    """The signatures of one form whose tensors are of these patterns, for values of the symbols within their ranges (least and most,
    both included) that keep every condition the graph was compiled under."""

    form: Form
    patterns: tuple[Pattern, ...]
    ranges: tuple[tuple[str, int, int], ...]
    conditions: tuple[Formula, ...] = ()

    def __str__(self) -> str:
        return " ".join(map(str, self.patterns))

    @property
    def digest(self) -> Digest:
        return Digest.of(encode(self.to_json()))

    def at(self, values: Mapping[str, int]) -> Signature:
        """The signature for these values of the symbols."""
        return Signature(self.form, tuple(pattern.at(values) for pattern in self.patterns))

    def refuses(self, signature: Signature) -> str | None:
        """Why it does not hold `signature`, in words, or None where it does.

        The compiled code itself checks nothing of this: a size outside gives wrong numbers and no error.
        """
        values = self.values(signature)
        if values is None:
            return forms_differ(self.form, signature.form) or "its tensors have other ranks"
        if isinstance(built := self._built(signature, values), str):
            return built
        return built.differs(signature.seen_by(built)) or self._broken(values)

    def taken(self, signature: Signature) -> Signature | None:
        """How the graph takes the tensors of a call, as they are or by way of copies that lie otherwise in memory; None where it cannot
        serve it."""
        values = self.values(signature)
        if values is None or isinstance(built := self._built(signature, values), str) or self._broken(values):
            return None
        return built if built.lies_like(signature.seen_by(built)) else None

    def _built(self, signature: Signature, values: Mapping[str, int]) -> Signature | str:
        """The signature for these values, which are those of a call; or why there is none, in words."""
        for name, least, most in self.ranges:
            if not least <= values[name] <= most:
                where, axis = self._places[name]
                argument, _ = signature.named()[where]
                return f"{argument}.shape[{axis}] is {values[name]}, built for {least} to {most}"
        try:
            return self.at(values)
        except ZeroDivisionError:
            return "its sizes divide by nothing"

    def _broken(self, values: Mapping[str, int]) -> str | None:
        broken = next((condition for condition in self.conditions if not holds(condition, values)), None)
        sizes = ", ".join(f"{name}={value}" for name, value in values.items())
        return None if broken is None else f"its sizes ({sizes}) break {broken}, under which it was compiled"

    def values(self, signature: Signature) -> dict[str, int] | None:
        """Those of the symbols, by the sizes that are a symbol alone; all else is compared afterwards. None where there is no such size."""
        ranks = [len(pattern.shape) for pattern in self.patterns]
        if signature.form != self.form or [len(spec.shape) for spec in signature.specs] != ranks:
            return None
        return {name: signature.specs[where].shape[axis] for name, (where, axis) in self._places.items()}

    @property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each symbol stands alone: of which tensor, which axis."""
        found: dict[str, tuple[int, int]] = {}
        for where, pattern in enumerate(self.patterns):
            for axis, extent in enumerate(pattern.shape):
                if isinstance(extent, Formula):
                    found.setdefault(extent.text, (where, axis))
        return {name: found[name] for name, _, _ in self.ranges}

    def ends(self) -> Iterator[Signature]:
        """Signatures at the ends of the ranges, as far as it serves them."""
        names = [name for name, _, _ in self.ranges]
        corners = list(product(*((least, most) for _, least, most in self.ranges)))
        for values in dict.fromkeys([corners[0], corners[-1], *corners[1 : _ENDS - 1]]):
            with suppress(ZeroDivisionError):
                signature = self.at(dict(zip(names, values, strict=True)))
                if self.refuses(signature) is None:
                    yield signature

    def check(self) -> None:
        """Raises Unsupported where it could not be checked at a call: a symbol that is no size by itself, a formula of another kind."""
        formulas = [extent for pattern in self.patterns for extent in (*pattern.shape, *pattern.stride) if isinstance(extent, Formula)]
        for formula in (*formulas, *self.conditions):
            formula.check()
        alone = {formula.text for formula in formulas}
        used = {name for formula in (*formulas, *self.conditions) for name in formula.names}
        if hidden := sorted((used | {name for name, _, _ in self.ranges}) - (alone & {name for name, _, _ in self.ranges})):
            raise Unsupported(f"{hidden[0]} is the size of nothing by itself.", remedy="build each size by itself.")

    def to_json(self) -> dict[str, Any]:
        return {
            "form": form_to_json(self.form),
            "patterns": [pattern.to_json() for pattern in self.patterns],
            "ranges": [list(found) for found in self.ranges],
            "conditions": [condition.text for condition in self.conditions],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        patterns, ranges = (
            tuple(map(Pattern.from_json, value["patterns"])),
            tuple((name, least, most) for name, least, most in value["ranges"]),
        )
        found = cls(form_from_json(value["form"]), patterns, ranges, tuple(map(Formula, value["conditions"])))
        found.check()
        return found


def _at(extent: Extent, values: Mapping[str, int]) -> int:
    return int(extent.at(values)) if isinstance(extent, Formula) else extent


def holds(condition: Formula, values: Mapping[str, int]) -> bool:
    """Whether it is true of these values; one that divides by nothing is not."""
    try:
        return bool(condition.at(values))
    except ZeroDivisionError:
        return False


def _to_json(extent: Extent) -> int | str:
    return extent.text if isinstance(extent, Formula) else extent


def _from_json(value: int | str) -> Extent:
    return Formula(value) if isinstance(value, str) else value
