"""Compiling: what a unit needs while it is compiled, whatever that ends in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import nn

from aot.building.plan import Unit
from aot.compiler.inductor import Configuration
from aot.compiler.parallel import cpus
from aot.environment import INDUCTOR_DIRECTORY
from aot.machine.device import Device
from aot.machine.sku import CPU
from aot.model.capture import in_dtype
from aot.request.compilation import Compilation


def at_once(device: Device) -> int:
    """How many are compiled at once: in forks, which a real GPU's context does not survive."""
    return cpus() if device.simulated or device.type == CPU else 1


def configuration(request: Compilation, device: Device) -> Configuration:
    """How all of a build is compiled."""
    return Configuration(request.inductor, request.options.mode.freezing, device.type, request.also)


@contextmanager
def tensors_for(unit: Unit, module: nn.Module, device: Device, own: str) -> Iterator[list[torch.Tensor]]:
    """The tensors of a unit's call, on the device. Within, `module` is in the dtype that it is called in, and what the compiler writes
    goes to a directory of its own: two that are compiled at once would write files of the same names."""
    with device.tensors():
        tensors = unit.signature.zeros()
    directory = {INDUCTOR_DIRECTORY: str(Path(os.environ[INDUCTOR_DIRECTORY]) / own)}
    with in_dtype(module, unit.dtype), mock.patch.dict(os.environ, directory):
        yield tensors
