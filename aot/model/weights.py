"""LiveWeights: a module's parameters and buffers, as they are at the moment of a call; and whether a graph can take them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from operator import attrgetter, getitem, itemgetter
from typing import Any, Self

import torch
from torch import nn
from torch._C._dynamo.guards import TensorGuards  # checked on torch 2.11.0, 2.13.0 and 2.15.0; imports no compiler

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.model.signature import TensorSpec
from aot.model.slots import beneath_all, has_adapters, is_slot
from aot.model.words import PLAIN_TENSORS, class_name
from aot.model.wrapped import INNER, Assembly, getter, named_parts

_ALIGNED = 16  # bytes: what Triton's kernels take for granted of every pointer


class LiveWeights:
    """Finds the weights of `module` by `names`, by default all in the order of its tree and then its slots, quickly enough to do it at
    every call. Of a wrapped one they are the plain tensors within; one that adapters were put around is found by its own name.

    Looking again each time is what makes a weight that was moved, replaced or fused be seen; keeping a list would serve the
    old one. The cost is a pass in C over the modules' own dicts (`scripts/dispatch_cost.py` measures it).
    """

    __slots__ = ("_inner", "_keys", "_owners", "_wrapped", "names")

    def __init__(self, module: nn.Module, names: Sequence[str] | None = None) -> None:
        adapted = names is not None and has_adapters(module)
        modules = (*module.named_modules(), *beneath_all(module)) if adapted else module.named_modules()
        found = {
            f"{path}.{key}".lstrip("."): (owned, key)
            for path, owner in modules
            for owned in (owner._parameters, owner._buffers)
            for key in owned
            if names is not None or owned[key] is not None
        }
        every = (one for name, (owned, key) in found.items() for one, _ in named_parts(name, owned[key]))
        self.names = sorted(every, key=is_slot) if names is None else list(names)
        places = [found.get(name.partition(INNER)[0], ({}, name)) for name in self.names]
        self._owners: list[dict[str, Any]] = [owned for owned, _ in places]
        self._keys = [key for _, key in places]
        within = [(place, name.partition(INNER)[2]) for place, name in enumerate(self.names)]
        self._inner = [(place, getter(path)) for place, path in within if path]
        once = {self.names[place].partition(INNER)[0]: place for place, _ in self._inner}  # a weight is looked at once, not by part
        self._wrapped = [(place, Assembly.of(self._owners[place].get(self._keys[place]))) for place in once.values()]

    @classmethod
    def nowhere(cls) -> Self:
        """Of a module that could not be looked at yet: `tensors` answers None."""
        return cls(nn.Module(), ["nowhere"])

    def tensors(self) -> list[torch.Tensor] | None:
        """The weights, in the order of `names`, None in the place of one that is there and None; None when one is nowhere, or is
        wrapped otherwise than it was."""
        try:
            found = self.held()
            if self._inner:
                if not all(assembly and assembly.same(found[place]) for place, assembly in self._wrapped):
                    return None
                for place, within in self._inner:
                    found[place] = within(found[place])
        except (KeyError, AttributeError):
            return None
        return found

    def held(self) -> list[Any]:
        """What the modules themselves hold in the place of each. Raises KeyError."""
        return list(map(getitem, self._owners, self._keys))

    def specs(self) -> list[TensorSpec]:
        return [TensorSpec.of(tensor) for tensor in self.tensors() or ()]

    def digest(self) -> Digest:
        """That of every weight's name, shape, dtype and bytes: what an artifact with the weights inside was made of. Reads them all."""
        found = hashlib.sha256()
        for name, tensor in zip(self.names, self.tensors() or (), strict=True):
            found.update(encode([name, list(tensor.shape), str(tensor.dtype)]))
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return Digest(found.hexdigest())


class WeightForms:
    """Whether weights have the types, shapes, strides, dtypes and devices that a graph takes, and memory behind them.

    What was compared once in Python is compared in C from then on; any change is compared in Python again.
    """

    __slots__ = ("_device", "_named", "_quick")

    def __init__(self, named: Sequence[tuple[str, TensorSpec]], device: torch.device) -> None:
        """`device`: where the graph runs, its index included."""
        self._named, self._device = named, device
        self._quick: dict[tuple[bool, bool], tuple[Any, Any, list[int]]] = {}

    def refuses(self, tensors: list[torch.Tensor]) -> str | None:
        """The first weight that a graph could not take, and why, or None."""
        mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        if (found := self._quick.get(mode)) is not None:
            guards, distinct, pointers = found
            if guards.check(*(distinct(tensors) if distinct else tensors)) and _places(tensors) == pointers:
                return None
        for (name, spec), tensor in zip(self._named, tensors, strict=True):
            if reason := unfit(tensor, spec, self._device):
                return f"weight {name} {reason}"
        if tensors:
            self._quick[mode] = _quick(tensors)
        return None


def _quick(tensors: list[torch.Tensor]) -> tuple[Any, Any, list[int]]:
    """torch's guards take each tensor once: weights that are tied are checked once too."""
    first: dict[int, int] = {}
    for place, tensor in enumerate(tensors):
        first.setdefault(id(tensor), place)
    once = list(first.values())
    distinct = None if len(once) == len(tensors) else itemgetter(*once) if len(once) > 1 else itemgetter(slice(0, 1))
    chosen = distinct(tensors) if distinct else tensors
    return TensorGuards(*chosen, dynamic_dims_sizes=None, dynamic_dims_strides=None), distinct, _places(tensors)


def unfit(tensor: Any, spec: TensorSpec, device: torch.device) -> str | None:
    """Why a graph that was compiled for `spec` cannot take this tensor, in words, or None."""
    if type(tensor) not in PLAIN_TENSORS:
        return f"is {'None' if tensor is None else f'a {class_name(type(tensor))}'}, built for {spec}"
    if tensor.layout is not torch.strided:
        return f"is {str(tensor.layout).removeprefix('torch.')}, built for a strided one"
    if tensor.is_conj() or tensor.is_neg():
        return "is a lazy conjugate or negative, built for plain numbers"
    if reason := spec.differs(TensorSpec.of(tensor)):
        return reason
    if tensor.device != device and tensor.device.type == device.type and device.index is not None:
        return f"device is {tensor.device}, loaded for {device}"
    return unbacked(tensor, spec.span)


def unbacked(tensor: torch.Tensor, span: int) -> str | None:
    """Why the memory behind a tensor whose first and last elements are `span` apart cannot be read by a graph, or None."""
    there = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
    if there < span:
        return f"has memory for {max(there, 0)} of its {span} elements"
    if tensor.is_cuda and tensor.data_ptr() % _ALIGNED:
        return f"begins at an address that is no multiple of {_ALIGNED}"
    return None


class Frozen:
    """The weights of a module as they were when a graph that has them inside was loaded."""

    __slots__ = ("_dtypes", "_held", "_identities", "_live", "_places", "_versions")

    def __init__(self, module: nn.Module) -> None:
        self._live = LiveWeights(module)
        self._held = self._live.held()  # kept: an identity could be given to another tensor once this one is gone
        tensors = self._live.tensors() or []  # of what is packed new ones each time, of the same memory and writes
        self._identities, self._versions = list(map(id, self._held)), _versions(tensors)
        self._dtypes, self._places = _dtypes(tensors), _places(tensors)

    @classmethod
    def unknown(cls) -> Self:
        """Of which nobody can tell."""
        found = cls(nn.Module())
        found._live = LiveWeights.nowhere()
        return found

    def changed(self) -> str | None:
        """Why these are not what the graph has inside, or None: others, one was written to since, or was given other memory.

        Weights in another dtype than at loading are elsewhere by necessity: a pipeline that raises its VAE to float32 for the
        time of decoding has not changed them.
        """
        tensors = self._live.tensors()
        if tensors is None or list(map(id, self._live.held())) != self._identities or _versions(tensors) != self._versions:
            return _OTHERS
        return None if _dtypes(tensors) != self._dtypes or _places(tensors) == self._places else _OTHERS


_OTHERS = "the weights were changed, and the graph has those it was built with inside"


def _versions(tensors: list[torch.Tensor]) -> list[int]:
    """How often each was written to; those made under inference mode are not counted by torch, and are read-only outside."""
    try:
        return list(map(attrgetter("_version"), tensors))
    except RuntimeError:
        return []


def _dtypes(tensors: list[torch.Tensor]) -> list[torch.dtype]:
    return list(map(attrgetter("dtype"), tensors))


def _places(tensors: list[torch.Tensor]) -> list[int]:
    return list(map(torch.Tensor.data_ptr, tensors))
