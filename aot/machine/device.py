"""Device: where a build's tensors are: on this machine's CPU or GPU, or on a GPU that is only simulated."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from aot.machine.sku import CPU, SKUS, find_sku

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import FakeTensorMode

    from aot.model.signature import TensorSpec


@dataclass(frozen=True, slots=True)
class Device:
    """`name` as torch writes it. With `fakes`, tensors have metadata and no data: nothing can be computed."""

    name: str
    fakes: FakeTensorMode | None = None

    @classmethod
    def of(cls, gpu: str) -> Self:
        """The real one."""
        return cls(CPU if gpu == CPU else "cuda")

    @property
    def simulated(self) -> bool:
        return self.fakes is not None

    @property
    def type(self) -> str:
        return self.name.split(":", maxsplit=1)[0]

    def tensors(self) -> AbstractContextManager[None]:
        """Within, what is made and computed is on a simulated device; of a real one, its users say so themselves."""
        if self.fakes is None:
            return nullcontext()
        from aot.machine.simulated import fake_device

        return fake_device(self.fakes)

    def fill(self, module: nn.Module, made: Callable[[TensorSpec, int], torch.Tensor]) -> None:
        """Bring a module whose weights have no memory here: as fakes on a simulated device, else as what `made` of their specs and
        places in the module."""
        if self.fakes is not None:
            from aot.machine.simulated import to_fake

            to_fake(module, self.fakes)
            return
        from aot.model.hollow import fill

        fill(module, self.name, made)


@contextmanager
def open_device(gpu: str, *, simulate: bool) -> Iterator[Device]:
    """The device to build on for `gpu`: its simulation, or the real one. Undone at the end, also on error."""
    if not simulate:
        yield Device.of(gpu)
        return
    from aot.machine.simulated import DEVICE, new_mode, simulated

    with simulated(find_sku(gpu)):
        yield Device(DEVICE, new_mode())


def gpus_here() -> list[str]:
    """The names of this machine's GPUs, from the driver itself: torch is not imported, no context is made. Empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names = []
    for ordinal in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        if not driver.cuDeviceGet(ctypes.byref(device), ordinal) and not driver.cuDeviceGetName(name, len(name), device):
            names.append(name.value.decode())
    return names


def properties_here() -> list[dict[str, Any]]:
    """What torch says of each GPU here, under the names of `Sku.properties`. Imports torch where a driver is."""
    if not gpus_here():
        return []
    import torch

    names = next(iter(SKUS.values())).properties()
    found = [torch.cuda.get_device_properties(ordinal) for ordinal in range(torch.cuda.device_count())]
    return [{name: getattr(device, name) for name in names if hasattr(device, name)} for device in found]


def current_ordinal(device: str) -> int:
    """Which of the devices of that type is current in this process; 0 for a CPU."""
    import torch

    return int(torch.cuda.current_device()) if device == "cuda" else 0


def choose_ordinal(device: str, ordinal: int) -> None:
    """Make that device the current one."""
    import torch

    if device == "cuda":
        torch.cuda.set_device(ordinal)


def wait_for_device() -> None:
    """Return when the GPU has done what it was given; at once where none is in use."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def is_here(gpu: str) -> bool:
    """Whether builds for `gpu` can run on the device itself: the first visible one, which torch takes as current."""
    return gpu == CPU or find_sku(gpu).name in gpus_here()[:1]
