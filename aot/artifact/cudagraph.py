"""CUDA graphs: record the launches of a loaded graph once for each shape of its inputs, replay them at every further call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

Run: TypeAlias = Callable[[list[torch.Tensor]], list[torch.Tensor]]


class Recorder(Protocol):
    """What records the launches of a function that takes its inputs from, and leaves its outputs in, fixed memory."""

    def record(self, function: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        """Run `function` and record it; return its outputs and what replays it into them."""
        ...


class CudaRecorder:
    """torch's own CUDA graphs, on the current device."""

    def record(self, function: Callable[[], list[torch.Tensor]]) -> tuple[list[torch.Tensor], Callable[[], None]]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what a first run loads and allocates must not be part of the recording
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = function()
        return outputs, graph.replay


@dataclass(slots=True)
class _Recording:
    addresses: list[int]  # of the weights, which a recording reads where they are
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    replay: Callable[[], None]


class Replayed:
    """`run(tensors)`, the weights first and then `inputs` tensors of the call, by replaying.

    Inputs are copied into the recording's memory, outputs out of it: the next replay writes there again. Weights that are no
    longer where they were (moved, replaced, offloaded) are recorded anew. `spent` is told how long recording took, in seconds.
    """

    def __init__(self, run: Run, *, inputs: int, recorder: Recorder, spent: Callable[[float], None]) -> None:
        self._run, self._count, self._recorder, self._spent = run, inputs, recorder, spent
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        split = len(tensors) - self._count
        weights, given = tensors[:split], tensors[split:]
        shapes, addresses = tuple(tensor.shape for tensor in given), [weight.data_ptr() for weight in weights]
        found = self._recordings.get(shapes)
        if found is None or found.addresses != addresses:
            self._recordings.pop(shapes, None)  # its memory is free for the next one
            found = self._recordings[shapes] = self._record(weights, given, addresses)
        for static, tensor in zip(found.inputs, given, strict=True):
            _own(static).copy_(_own(tensor))
        found.replay()
        return [output.clone() for output in found.outputs]

    def _record(self, weights: list[torch.Tensor], given: list[torch.Tensor], addresses: list[int]) -> _Recording:
        started = time.perf_counter()
        inputs = [torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device) for tensor in given]
        for static, tensor in zip(inputs, given, strict=True):
            _own(static).copy_(_own(tensor))
        outputs, replay = self._recorder.record(lambda: self._run([*weights, *inputs]))
        self._spent(time.perf_counter() - started)
        return _Recording(addresses, inputs, outputs, replay)


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that has memory of its own: an expanded one repeats it, and cannot be written to."""
    return tensor[tuple(slice(0, 1) if step == 0 else slice(None) for step in tensor.stride())]
