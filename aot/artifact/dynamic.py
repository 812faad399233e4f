"""Dynamic range: the many signatures that one graph serves, their sizes multiples of the image's height and width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.errors import Unsupported
from aot.model.signature import Form, Signature, TensorSpec, form_from_json, form_to_json
from aot.request.recipe import Bucket
from aot.request.shape import Shape

Size: TypeAlias = tuple[int, int]  # height and width in units: a bucket's divisor is 1


@dataclass(frozen=True, slots=True)
class Extent:
    """A size or stride in elements: `factor`, times height and width in units where the flags say so."""

    factor: int
    by_height: bool = False
    by_width: bool = False

    def __str__(self) -> str:
        letters = "h" * self.by_height + "w" * self.by_width
        return f"{self.factor}{letters}" if self.factor != 1 or not letters else letters

    def at(self, size: Size) -> int:
        return self.factor * (size[0] if self.by_height else 1) * (size[1] if self.by_width else 1)


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a dynamic graph knows of a tensor: a TensorSpec of extents."""

    shape: tuple[Extent, ...]
    stride: tuple[Extent, ...]
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"

    def at(self, size: Size) -> TensorSpec:
        shape, stride = (tuple(extent.at(size) for extent in extents) for extents in (self.shape, self.stride))
        return TensorSpec(shape, stride, self.dtype, self.device)

    def to_json(self) -> list[Any]:
        shape, stride = ([[e.factor, e.by_height, e.by_width] for e in extents] for extents in (self.shape, self.stride))
        return [shape, stride, self.dtype, self.device]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Self:
        shape, stride = (tuple(Extent(*extent) for extent in extents) for extents in value[:2])
        return cls(shape, stride, value[2], value[3])


@dataclass(frozen=True, slots=True)
class DynamicRange:
    """The signatures of one form whose patterns hold for a height and width from `least` to `most` units.

    `unless` leaves out the sizes where both are multiples of it. `unit` is in pixels.
    """

    form: Form
    patterns: tuple[Pattern, ...]
    unit: int
    least: int
    most: int
    unless: int

    def __str__(self) -> str:
        return " ".join(map(str, self.patterns))

    @property
    def digest(self) -> Digest:
        return Digest.of(encode(self.to_json()))

    @property
    def by_area(self) -> bool:
        """Whether tensors show only the product of height and width, as inside a transformer's blocks."""
        varying = {(e.by_height, e.by_width) for pattern in self.patterns for e in pattern.shape}
        return (True, True) in varying and not varying & {(True, False), (False, True)}

    def at(self, size: Size) -> Signature:
        """The signature at that height and width."""
        return Signature(self.form, tuple(pattern.at(size) for pattern in self.patterns))

    def refuses(self, signature: Signature) -> str | None:
        """Why this range does not hold `signature`, in words, or None where it does.

        The compiled code itself checks nothing of this: a size outside gives wrong numbers and no error.
        """
        size = self._size(signature)
        if reason := self.at(size).differs(signature):
            return reason
        shown = "x".join(str(side * self.unit) for side in size)
        if self.by_area and not self.least**2 <= size[0] <= self.most**2:
            return f"the area is {size[0] * self.unit**2} pixels, built for sides of {self._bounds}"
        if not self.by_area and not all(self.least <= side <= self.most for side in size):
            return f"the size is {shown} pixels, built for sides of {self._bounds}"
        if self.unless and all(side % self.unless == 0 for side in size):
            return f"the size is {shown} pixels, built for those not multiples of {self.unless * self.unit} on both sides"
        return None

    def taken(self, signature: Signature) -> Signature:
        """How the graph takes the tensors of a call that it serves: as they are."""
        return signature

    @property
    def _bounds(self) -> str:
        return f"{self.least * self.unit} to {self.most * self.unit} pixels"

    def _size(self, signature: Signature) -> Size:
        """The height and width that the first sizes which vary with them speak of; the rest is compared afterwards."""
        height = width = self.least
        for pattern, spec in zip(reversed(self.patterns), reversed(signature.specs), strict=False):
            for extent, found in zip(pattern.shape, spec.shape, strict=False):
                match extent:
                    case Extent(factor, True, True) if self.by_area:
                        height, width = found // factor, 1
                    case Extent(factor, True, False):
                        height = found // factor
                    case Extent(factor, False, True):
                        width = found // factor
        return height, width

    def to_json(self) -> dict[str, Any]:
        return {
            "form": form_to_json(self.form),
            "patterns": [pattern.to_json() for pattern in self.patterns],
            "unit": self.unit,
            "least": self.least,
            "most": self.most,
            "unless": self.unless,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        patterns = tuple(map(Pattern.from_json, value["patterns"]))
        return cls(form_from_json(value["form"]), patterns, *(value[name] for name in ("unit", "least", "most", "unless")))


def probes(bucket: Bucket, near: Shape) -> tuple[Size, Size, Size]:
    """Three sizes of the bucket, in units, from which `fit` reads what varies with what; the first is traced.

    Never square, and never the size that a model's own positions are for: there, some take another branch. With an
    `unless`, both sides are odd: a graph traced so computes the bucket's every size in the same way.
    """
    height, width = (max(side // bucket.divisor, bucket.bounds[0]) for side in (near.height, near.width))
    height, width = (height | 1, width | 1) if bucket.unless else (height, width)
    while abs(height - width) in (0, 2):
        width += 2 if bucket.unless else 1
    return (height, width), (height + 2, width), (height, width + 2)


def corners(bucket: Bucket, near: Shape) -> list[Shape]:
    """Sizes of the bucket at which a dynamic graph is compared with eager: where a branch taken at the traced size might differ.

    Tall and wide, square, and with an `unless` one side a multiple of it and the other not, both ways.
    """
    (height, width), *_ = probes(bucket, near)
    found = [(height, width), (width, height), (height, height)]
    if step := bucket.unless // bucket.divisor:
        found += [(height, height // step * step + step), (height // step * step + step, height)]
    return [Shape(h * bucket.divisor, w * bucket.divisor) for h, w in found]


def fit(signatures: Sequence[Signature], sizes: Sequence[Size], bucket: Bucket) -> DynamicRange:
    """The range that holds `signatures`, which one call had at `sizes`. Raises Unsupported where their sizes follow no such rule."""
    first = signatures[0]
    patterns = []
    for specs in zip(*(signature.specs for signature in signatures), strict=True):
        shape, stride = (_extents([part(spec) for spec in specs], sizes) for part in (_shape, _stride))
        patterns.append(Pattern(shape, stride, specs[0].dtype, specs[0].device))
    found = DynamicRange(first.form, tuple(patterns), bucket.divisor, *bucket.bounds, bucket.unless // bucket.divisor)
    for size, signature in zip(sizes, signatures, strict=True):
        if reason := found.at(size).differs(signature):
            raise Unsupported(
                f"no dynamic graph: the sizes of a call follow no rule of height and width: {reason}.",
                remedy="build whole scope, or list the sizes with --shape and leave --dynamic out.",
            )
    return found


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    return spec.shape


def _stride(spec: TensorSpec) -> tuple[int, ...]:
    return spec.stride


def _extents(rows: Sequence[tuple[int, ...]], sizes: Sequence[Size]) -> tuple[Extent, ...]:
    return tuple(_extent(values, sizes) for values in zip(*rows, strict=True))


def _extent(values: tuple[int, ...], sizes: Sequence[Size]) -> Extent:
    (height, width), _, _ = sizes
    base, taller, wider = values
    extent = Extent(1, by_height=taller != base, by_width=wider != base)
    return Extent(base // extent.at((height, width)), extent.by_height, extent.by_width)
