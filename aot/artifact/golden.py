"""Golden: what each graph of an artifact answered at its build, or has to answer, to inputs that any process can make again."""

from __future__ import annotations

import base64
import math
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from aot.artifact.book import Book, GraphEntry
from aot.artifact.cudagraph import Run
from aot.cache_store.canonical import decode, encode
from aot.model.casting import called_with
from aot.model.signature import TensorSpec
from aot.model.wrapped import assemblies, put_together
from aot.model.writes import Results

FILE = "golden.json"
_PERIOD = 8191  # a prime: no width of a layer divides it, so no two rows of a weight are alike
_STEP = 131
_SAMPLES = 256  # of each output, evenly spaced: 1 KiB each


@dataclass(frozen=True, slots=True)
class Golden:
    """By library, its outputs' shapes and some of their elements as float32. None where an output was not finite."""

    outputs: dict[str, list[tuple[list[int], torch.Tensor]] | None]

    @classmethod
    def record(cls, book: Book, runs: dict[str, Run], *, device: str | None = None) -> Self:
        """Run every graph of `book`, by library, on its golden inputs: on `device`, else where the graph wants them."""
        return cls({entry.file: _sampled(runs[entry.file](inputs(book, place, device))) for place, entry in enumerate(book.graphs)})

    def error(self, book: Book, runs: dict[str, Run]) -> float:
        """The largest relative L2 error of the graphs now against what they answered then; infinite where there is no answer."""
        worst = 0.0
        for place, entry in enumerate(book.graphs):
            then, now = self.outputs.get(entry.file), _sampled(runs[entry.file](inputs(book, place)))
            if then is None or now is None or [shape for shape, _ in then] != [shape for shape, _ in now]:
                return math.inf
            for (_, ours), (_, theirs) in zip(then, now, strict=True):
                worst = max(worst, float((ours - theirs).norm() / ours.norm().clamp_min(1e-30)))
        return worst

    def encode(self) -> bytes:
        return encode({file: found and [[shape, _text(values)] for shape, values in found] for file, found in self.outputs.items()})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of a file that was verified. Raises Malformed, KeyError, TypeError, ValueError when it is not of this form."""
        value: dict[str, Any] = decode(path.read_bytes(), what="golden outputs")
        return cls({file: found and [(shape, _values(text)) for shape, text in found] for file, found in value.items()})


def eager(module: nn.Module, names: list[str], entry: GraphEntry, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the module itself answers to a graph's inputs: the weights of those names, then the call's tensors."""
    args, kwargs = entry.signature.call(tensors[len(names) :])
    returned = called_with(module, put_together(names, tensors, assemblies(module)), args, kwargs)
    return Results.of(returned, (args, kwargs), entry.signature.form, tensors[len(names) :]).tensors


def inputs(book: Book, place: int, device: str | None = None) -> list[torch.Tensor]:
    """The golden inputs of a graph: weights, then the call's tensors; on `device`, else where the graph wants them."""
    entry = book.graphs[place]
    made = [noise(spec, number, weight=True, device=device) for number, (_, spec) in enumerate(book.inputs(entry))]
    calls = enumerate(entry.signature.specs, len(made))
    return made + [noise(spec, number, weight=False, device=device) for number, spec in calls]


def noise(spec: TensorSpec, number: int, *, weight: bool, device: str | None = None) -> torch.Tensor:
    """Normal noise made by Python, whose generator is the same in every version, begun elsewhere in each tensor; ones where the
    dtype is none of floats.

    A weight is scaled as at initialisation, so that what passes through a deep model neither vanishes nor overflows; one of
    a single dimension may be a norm's, and is around a half. One of bytes is small numbers in whatever format of GGUF's.
    """
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if weight and dtype == torch.uint8:  # packed: read as half-precision scales, no byte of these is negative or above 0.01
        flat = (_period().roll(_STEP * number).repeat(-(-spec.span // _PERIOD))[: spec.span] * 8 + 16).clamp(0, 31)
    elif not dtype.is_floating_point:
        flat = torch.ones(spec.span, dtype=dtype)
    else:
        flat = _period().roll(_STEP * number).repeat(-(-spec.span // _PERIOD))[: spec.span]
        if weight:
            flat = flat / math.sqrt(max(math.prod(spec.shape[1:]), 1)) if len(spec.shape) > 1 else 0.5 + 0.1 * flat
    return flat.to(dtype).to(device or spec.device).as_strided(spec.shape, spec.stride)


@cache
def _period() -> torch.Tensor:
    generator = random.Random(0)  # noqa: S311
    return torch.tensor([generator.gauss(0, 1) for _ in range(_PERIOD)], dtype=torch.float32)


def _sampled(outputs: list[torch.Tensor]) -> list[tuple[list[int], torch.Tensor]] | None:
    found = []
    for tensor in outputs:
        flat = tensor.detach().cpu().float().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64).long()
        found.append((list(tensor.shape), flat[places]))
    finite = all(bool(torch.isfinite(values).all()) for _, values in found)
    return found if finite else None


def _text(values: torch.Tensor) -> str:
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _values(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text, validate=True)), dtype=torch.float32)
