"""LiveWeights: a module's parameters and buffers, as they are at the moment of a call."""

from __future__ import annotations

from operator import getitem
from typing import Any, Self

import torch
from torch import nn

from aot.signature import TensorSpec


class LiveWeights:
    """Finds the weights of `module` in a fixed order, quickly enough to do it at every call.

    Looking again each time is what makes a weight that was moved, replaced or fused be seen; keeping a list would serve the
    old one. The cost is two passes in C over the modules' own dicts (`scripts/dispatch_cost.py` measures it).
    """

    __slots__ = ("_absent", "_children", "_count", "_keys", "_owners", "_tree", "names")

    def __init__(self, module: nn.Module) -> None:
        owners = list(module.named_modules())
        self._children = [owner._modules for _, owner in owners]
        self._tree = [dict(children) for children in self._children]
        slots = [(path, d, key) for path, owner in owners for d in (owner._parameters, owner._buffers) for key in d]
        present = [(path, d, key) for path, d, key in slots if d[key] is not None]
        absent = [(path, d, key) for path, d, key in slots if d[key] is None]  # a bias that a layer was made without
        self._owners: list[dict[str, Any]] = [d for _, d, _ in present + absent]
        self._keys = [key for _, _, key in present + absent]
        self._count, self._absent = len(present), [None] * len(absent)
        self.names = [f"{path}.{key}".lstrip(".") for path, _, key in present]

    @classmethod
    def unseen(cls) -> Self:
        """Of a module that could not be looked at yet: `tensors` answers None."""
        empty = cls(nn.Module())
        empty._tree = []
        return empty

    def tensors(self) -> list[torch.Tensor] | None:
        """The weights, in the order of `names`; None when the module is no longer made of the same parts."""
        if self._children != self._tree:  # compares by identity first: a module's own equality
            return None
        try:
            found = list(map(getitem, self._owners, self._keys))
        except KeyError:
            return None
        if self._absent:
            if found[self._count :] != self._absent:
                return None
            del found[self._count :]
        return found

    def specs(self) -> list[TensorSpec]:
        return [TensorSpec.of(tensor) for tensor in self.tensors() or ()]
