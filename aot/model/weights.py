"""LiveWeights: a module's parameters and buffers, as they are at the moment of a call."""

from __future__ import annotations

import hashlib
from operator import attrgetter, getitem
from typing import Any, Self

import torch
from torch import nn

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.model.signature import TensorSpec


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

    def digest(self) -> Digest:
        """That of every weight's name, shape, dtype and bytes: what an artifact with the weights inside was made of. Reads them all."""
        found = hashlib.sha256()
        for name, tensor in zip(self.names, self.tensors() or (), strict=True):
            found.update(encode([name, list(tensor.shape), str(tensor.dtype)]))
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return Digest(found.hexdigest())


class FrozenWeights:
    """The weights as they were when a graph that has them inside was loaded."""

    __slots__ = ("_dtypes", "_identities", "_places", "_tensors", "_versions")

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors  # kept: an identity could be given to another tensor once this one is gone
        self._identities, self._versions = list(map(id, tensors)), _versions(tensors)
        self._dtypes, self._places = _dtypes(tensors), _places(tensors)

    def still(self, tensors: list[torch.Tensor]) -> bool:
        """Whether these are the same tensors, nobody wrote to one since, and none was given other memory.

        Weights in another dtype than at loading are elsewhere by necessity: a pipeline that raises its VAE to float32 for the
        time of decoding has not changed them.
        """
        same = list(map(id, tensors)) == self._identities and _versions(tensors) == self._versions
        return same and (_dtypes(tensors) != self._dtypes or _places(tensors) == self._places)


def _versions(tensors: list[torch.Tensor]) -> list[int]:
    """How often each was written to; those made under inference mode are not counted by torch, and are read-only outside."""
    try:
        return list(map(attrgetter("_version"), tensors))
    except RuntimeError:
        return []


def _dtypes(tensors: list[torch.Tensor]) -> list[torch.dtype]:
    return list(map(attrgetter("dtype"), tensors))


def _places(tensors: list[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]
