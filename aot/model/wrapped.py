"""Wrapped: weights of another class than torch's own, as quantised ones are: taken apart into plain tensors, and put together again.

They go into a graph as the plain tensors they hold; the graph puts them together as it begins. It is the way of torch's own compiler:
`__tensor_flatten__` and `__tensor_unflatten__` of the class. Packed ones, GGUF's, are bytes with a note of their format, which torch's
compiler loses; they go in as bytes.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor  # checked on torch 2.11.0, 2.13.0 and 2.15.0
from torch.utils._python_dispatch import is_traceable_wrapper_subclass  # checked on torch 2.14.1

INNER = "!"  # between a weight's own path and that of a tensor within it


_BYTES = "bytes"  # the one within a packed tensor
PACKED = "GGUF"
_GGUF = ("diffusers.quantizers.gguf.utils", "GGUFParameter")


def is_packed(tensor: Any) -> bool:
    """Whether it is bytes that are to be read as the note `quant_type` says: GGUF's, or a fake that stands for one."""
    kind = type(tensor)
    return (kind.__name__ == _GGUF[1] and kind.__module__ == _GGUF[0]) or (isinstance(tensor, FakeTensor) and "quant_type" in vars(tensor))


def is_wrapped(tensor: Any) -> bool:
    """Whether it holds plain tensors that a graph can take in its place. A fake holds nothing, but where it stands for a packed one."""
    return isinstance(tensor, torch.Tensor) and (is_packed(tensor) or is_traceable_wrapper_subclass(tensor))


def taken_apart(tensor: Any) -> tuple[Sequence[str], Any]:
    """The names of what is within a wrapped tensor, and what else there is to say of it."""
    if is_packed(tensor):
        return (_BYTES,), tensor.quant_type
    names, context = tensor.__tensor_flatten__()
    return names, context


def inner(tensor: Any, name: str) -> torch.Tensor:
    """What is within a wrapped tensor by that name."""
    found: torch.Tensor = _bytes(tensor) if is_packed(tensor) else getattr(tensor, name)
    return found


def getter(path: str) -> Callable[[Any], Any]:
    """What finds the plain tensor at a path within a wrapped one."""
    return _bytes if path == _BYTES else attrgetter(path)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, FakeTensor):
        return tensor.detach()
    found: torch.Tensor = torch.Tensor._make_subclass(torch.Tensor, tensor, False)
    return found


def _packed(plain: torch.Tensor, quant_type: Any) -> torch.Tensor:
    """The packed tensor of these bytes; of what only stands for data, something that reads like it, as no fake can be of the class."""
    if type(plain) in (torch.Tensor, nn.Parameter):
        kind = getattr(importlib.import_module(_GGUF[0]), _GGUF[1])
        made: torch.Tensor = kind(plain, quant_type=quant_type)
        return made
    vars(plain).update(quant_type=quant_type, as_tensor=lambda: plain)
    return plain


def parts(tensor: torch.Tensor, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors within it, in order, by the path of attributes that leads to each; itself, by no path, where it is one."""
    if not is_wrapped(tensor):
        yield path, tensor
        return
    for name in taken_apart(tensor)[0]:
        yield from parts(inner(tensor, name), f"{path}.{name}".lstrip("."))


def named_parts(name: str, weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors of a weight by name: its own, or with the path within."""
    for path, tensor in parts(weight):
        yield (f"{name}{INNER}{path}" if path else name), tensor


def with_parts(tensor: torch.Tensor, made: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """One of the same class and context with what is `made` of its plain tensors in their place."""
    assembly = Assembly.of(tensor)
    return assembly.build(iter([made(part) for _, part in parts(tensor)])) if assembly else made(tensor)


@dataclass(frozen=True, slots=True)
class Assembly:
    """How a tensor is put together from plain ones."""

    kind: Any  # with __tensor_unflatten__; or `_packed`
    inner: tuple[tuple[str, Assembly | None], ...]
    context: Any
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> Assembly | None:
        """None for a plain one."""
        if not is_wrapped(tensor):
            return None
        names, context = taken_apart(tensor)
        if is_packed(tensor):
            return cls(_packed, ((_BYTES, None),), context, (), ())  # its shape is that of its bytes
        within = tuple((name, cls.of(getattr(tensor, name))) for name in names)
        return cls(type(tensor), within, context, tuple(tensor.shape), tensor.stride())

    def build(self, tensors: Iterator[torch.Tensor]) -> torch.Tensor:
        """Of the next of these."""
        within = {name: below.build(tensors) if below else next(tensors) for name, below in self.inner}
        if self.kind is _packed:
            packed: torch.Tensor = _packed(within[_BYTES], self.context)
            return packed
        made: torch.Tensor = self.kind.__tensor_unflatten__(within, self.context, torch.Size(self.shape), self.stride)
        return made

    def same(self, tensor: Any) -> bool:
        """Whether a tensor is put together so."""
        return (self.kind is _packed or type(tensor) is self.kind) and Assembly.of(tensor) == self


def assemblies(module: nn.Module) -> dict[str, Assembly]:
    """Those of a module's weights that are wrapped, by name."""
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: found for name, weight in every if (found := Assembly.of(weight))}


def put_together(names: Sequence[str], tensors: Sequence[torch.Tensor], how: Mapping[str, Assembly]) -> dict[str, torch.Tensor]:
    """The weights by their own names, of plain tensors by the names that `named_parts` gives them."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, tensor in zip(names, tensors, strict=False):
        groups.setdefault(name.partition(INNER)[0], []).append(tensor)
    return {name: how[name].build(iter(group)) if name in how else group[0] for name, group in groups.items()}


class Pickler(pickle.Pickler):
    """Of what may have packed weights, whose own way to be pickled never ends (diffusers 0.42.1)."""

    def reducer_override(self, value: Any) -> Any:
        if is_packed(value):
            return _packed, (_bytes(value), value.quant_type)
        return NotImplemented
