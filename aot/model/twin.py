"""Twin: a copy of a module that shares its weights and nothing else, to be run and traced in its place."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

from torch import nn
from torch.utils._python_dispatch import _disable_current_modes  # a private name, checked on torch 2.14.1

from aot.model.casting import put_on, take_off

M = TypeVar("M", bound=nn.Module)


def twin(module: M) -> M:
    """A copy with attributes of its own and the same tensors as weights.

    Running a module on fakes leaves fakes in whatever it caches (rotary tables, on Z-Image), and the live one would go on with
    them, wrongly and without an error. What a cache of functions keeps, it keeps under the twin.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    with _disable_current_modes():  # a copy of what has data has data, whatever is being traced around
        copied = deepcopy(module, shared)
    put_on(copied, take_off(copied))
    return copied
