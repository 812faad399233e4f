"""LiveWeights: a module's parameters and buffers, as they are at the moment of a call."""

from __future__ import annotations

from itertools import chain, compress
from typing import Any, Self

import torch
from torch import nn

from aot.signature import TensorSpec


class LiveWeights:
    """Finds the weights of `module` in a fixed order, quickly enough to do it at every call.

    Looking again each time is what makes a weight that was moved, replaced or fused be seen; keeping a list would
    serve the old one. Cost: two passes in C over the modules' own dicts (`scripts/dispatch_cost.py` measures it).
    """

    __slots__ = ("_children", "_dicts", "_length", "_mask", "_tree", "names")

    def __init__(self, module: nn.Module) -> None:
        owners = list(module.named_modules())
        self._children = [owner._modules for _, owner in owners if owner._modules]
        self._tree: list[nn.Module | None] = list(chain.from_iterable(map(dict.values, self._children)))
        dicts = [(path, d) for path, owner in owners for d in (owner._parameters, owner._buffers) if d]
        self._dicts: list[dict[str, Any]] = [d for _, d in dicts]
        self._mask = [tensor is not None for d in self._dicts for tensor in d.values()]
        self._length = len(self._mask)
        self.names = [f"{path}.{name}".lstrip(".") for path, d in dicts for name, tensor in d.items() if tensor is not None]

    @classmethod
    def unseen(cls) -> Self:
        """Of a module that could not be looked at yet: `tensors` answers None."""
        empty = cls(nn.Module())
        empty._tree = [None]
        return empty

    def tensors(self) -> list[torch.Tensor] | None:
        """The weights, in the order of `names`; None when the module's tree is no longer the one this was made from."""
        if list(chain.from_iterable(map(dict.values, self._children))) != self._tree:
            return None
        found = list(chain.from_iterable(map(dict.values, self._dicts)))
        if len(found) != self._length:
            return None
        return list(compress(found, self._mask))

    def specs(self) -> list[TensorSpec]:
        return [TensorSpec.of(tensor) for tensor in self.tensors() or ()]
