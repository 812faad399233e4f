"""Reference: golden outputs where a build has no device to run its graphs on: the eager model's, on the CPU, in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aot.artifact.book import Book, GraphEntry
from aot.artifact.golden import Golden, eager
from aot.building.plan import Plan
from aot.errors import first_line
from aot.machine.device import Device
from aot.model.capture import in_dtype
from aot.model.casting import called_with, casts
from aot.model.twin import twin
from aot.model.weights import LiveWeights
from aot.model.wrapped import is_packed

_MOST_FLOP = 2e12  # of all graphs: about a minute of a build host. FLUX.1-dev's two blocks and decoder at 1024x1024 take 5e12
_SPARE = 2 << 30  # bytes of memory left to others


def reference(plan: Plan, book: Book, device: Device) -> Golden | str:
    """What each graph of `book` has to answer to its golden inputs, by the plan's own modules; or why that is not known.

    Half precisions are computed in float32 from the very inputs that the device will have, so the error of a graph against
    these is its own rounding, not twice that. What chooses its own dtype computes in that one.
    """
    runs: dict[str, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {}
    flop = 0
    for entry, unit in zip(book.graphs, plan.units, strict=True):
        module, names = plan.kinds[entry.kind].module, [name for name, _ in book.inputs(entry)]
        with in_dtype(module, unit.dtype):
            if why := _too_large(module, names):
                return f"{entry.file}: {why}"
            try:
                flop += _flop(module, entry, device)
            except Exception as error:  # a higher-order operator: int8 activations' product
                return f"{entry.file}: what the eager model computes cannot be counted: {type(error).__name__}: {first_line(error)}"
        runs[entry.file] = partial(_eager, module, names, entry)
    if flop > _MOST_FLOP:
        return f"the eager model takes {flop:.0e} floating-point operations, more than {_MOST_FLOP:.0e}"
    try:
        with torch.no_grad():
            return Golden.record(book, runs, device="cpu")
    except Exception as error:  # a module that computes on its device alone is built all the same
        return f"the eager model does not run on a CPU: {type(error).__name__}: {first_line(error)}"


def _eager(module: nn.Module, names: list[str], entry: GraphEntry, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    if not _chooses_dtype(module):
        tensors = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors]
    return eager(module, names, entry, tensors)


def _chooses_dtype(module: nn.Module) -> bool:
    """Whether some of it computes in a dtype of its own choice, whatever it is given."""
    return bool(casts(module)) or any(map(is_packed, module.parameters()))


def _too_large(module: nn.Module, names: list[str]) -> str:
    """Why this host has too little memory to run it; empty where it has enough."""
    weights = LiveWeights(module, names).tensors() or ()
    needed = 2 * 4 * sum(weight.numel() for weight in weights)  # the weights, and what is made on the way
    free = available_memory()
    if needed + _SPARE > free:
        return f"the eager model takes {needed / 2**30:.0f} GiB in float32, and {free / 2**30:.0f} are free here"
    return ""


def _flop(module: nn.Module, entry: GraphEntry, device: Device) -> int:
    """The floating-point operations of its call."""
    with device.tensors(), torch.no_grad():
        args, kwargs = entry.signature.call(entry.signature.zeros())
        ran = twin(module)
        with FlopCounterMode(display=False) as counted:
            called_with(ran, {}, args, kwargs)
    return int(counted.get_total_flops())


def available_memory(system: Path = Path("/")) -> int:
    """Bytes that this process may still take: what the kernel counts as available, within its control group's limit."""
    lines = (system / "proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = system / "sys/fs/cgroup"
    try:
        limit, used = (group / "memory.max").read_text(), (group / "memory.current").read_text()
        return free if limit.strip() == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no control group of the second version
        return free
