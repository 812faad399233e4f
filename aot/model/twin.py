"""Twin: a copy of a module that shares its weights and nothing else, to be run and traced in its place."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def twin(module: M) -> M:
    """A copy with attributes of its own and the same tensors as weights.

    Running a module on fakes leaves fakes in whatever it caches (rotary tables, on Z-Image), and the live one would go on with
    them, wrongly and without an error. What a cache of functions keeps, it keeps under the twin.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return deepcopy(module, shared)
