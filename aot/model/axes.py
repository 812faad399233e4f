"""Axes: calls that differ in sizes alone, to be served by one graph: what varied between them is left open."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.model.signature import Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class Axes:
    """The recorded signatures, two or more. Their tensors agree in all but the sizes of some axes, none of which is ever 1:
    what has one of something (an image, a channel) is computed in another way, and a batch is an axis only from two to more."""

    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        first, varying = self.signatures[0], self.varying()
        sizes = (
            ",".join("*" if axis in open_axes else str(size) for axis, size in enumerate(spec.shape))
            for spec, open_axes in zip(first.specs, varying, strict=True)
        )
        return " ".join(f"{spec.dtype}[{shape}]" for spec, shape in zip(first.specs, sizes, strict=True))

    @property
    def digest(self) -> Digest:
        return Digest.of(encode(sorted(str(signature.digest) for signature in self.signatures)))

    def varying(self) -> list[dict[int, tuple[int, int]]]:
        """Of each tensor, the axes that vary, with the least and the largest of their sizes."""
        return [dict(_varying(specs)) for specs in zip(*(signature.specs for signature in self.signatures), strict=True)]

    @property
    def traced(self) -> Signature:
        """The one to trace: of the largest number of different sizes, so that no two axes are taken for one."""
        varying = self.varying()

        def distinct(signature: Signature) -> tuple[int, int]:
            sizes = [spec.shape[axis] for spec, axes in zip(signature.specs, varying, strict=True) for axis in axes]
            return len(set(sizes)), -sum(sizes)

        return max(self.signatures, key=distinct)


def _varying(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[int, tuple[int, int]]]:
    for axis, sizes in enumerate(zip(*(spec.shape for spec in specs), strict=True)):
        if len(set(sizes)) > 1:
            yield axis, (min(sizes), max(sizes))


def alike(signatures: Iterable[Signature]) -> list[tuple[Signature, ...]]:
    """Those that one graph may serve together, in order."""
    groups: dict[object, dict[Signature, None]] = {}
    for signature in signatures:
        groups.setdefault((signature.form, tuple(map(_skeleton, signature.specs))), {})[signature] = None
    return [tuple(group) for group in groups.values()]


def _skeleton(spec: TensorSpec) -> object:
    """What of a tensor no axis changes: where it has one or none of something, and in which order its axes lie in memory."""
    few = tuple(size if size < 2 else None for size in spec.shape)
    many = [axis for axis, size in enumerate(spec.shape) if size > 1]  # along others a stride leads nowhere
    order = tuple(sorted(many, key=lambda axis: (-spec.stride[axis], axis)))
    dense = spec.span == math.prod(spec.shape)
    return spec.dtype, spec.device, few, order, dense, tuple(spec.stride[axis] == 0 for axis in many)
