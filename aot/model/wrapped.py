"""Wrapped: weights of another class than torch's own, as quantised ones are: taken apart into plain tensors, and put together again.

They go into a graph as the plain tensors they hold; the graph puts them together as it begins. It is the way of torch's own compiler:
`__tensor_flatten__` and `__tensor_unflatten__` of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass  # checked on torch 2.14.1

INNER = "!"  # between a weight's own path and that of a tensor within it


def is_wrapped(tensor: Any) -> bool:
    """Whether it holds plain tensors that a graph can take in its place. A fake holds nothing."""
    return isinstance(tensor, torch.Tensor) and is_traceable_wrapper_subclass(tensor)


def parts(tensor: torch.Tensor, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors within it, in order, by the path of attributes that leads to each; itself, by no path, where it is one."""
    if not is_wrapped(tensor):
        yield path, tensor
        return
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        yield from parts(getattr(tensor, name), f"{path}.{name}".lstrip("."))


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

    kind: Any  # with __tensor_unflatten__
    inner: tuple[tuple[str, Assembly | None], ...]
    context: Any
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Any) -> Assembly | None:
        """None for a plain one."""
        if not is_wrapped(tensor):
            return None
        names, context = tensor.__tensor_flatten__()
        inner = tuple((name, cls.of(getattr(tensor, name))) for name in names)
        return cls(type(tensor), inner, context, tuple(tensor.shape), tensor.stride())

    def build(self, tensors: Iterator[torch.Tensor]) -> torch.Tensor:
        """Of the next of these."""
        inner = {name: below.build(tensors) if below else next(tensors) for name, below in self.inner}
        made: torch.Tensor = self.kind.__tensor_unflatten__(inner, self.context, torch.Size(self.shape), self.stride)
        return made

    def same(self, tensor: Any) -> bool:
        """Whether a tensor is put together so."""
        return type(tensor) is self.kind and Assembly.of(tensor) == self


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
