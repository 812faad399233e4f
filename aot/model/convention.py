"""Convention: the parameters of a forward, by which every way of writing the same call becomes one, and one is written as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from aot.model.signature import fill, flatten

Written: TypeAlias = tuple[int, tuple[str, ...]]  # how a call is written: so many arguments by place, then those by these names


class Convention:
    """The parameters of a forward, so that every way of writing the same call becomes one."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._signature = inspect.signature(forward)

    def canonical(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call with every argument by name and every default written out. Raises TypeError as the call would."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        kinds = {name: parameter.kind for name, parameter in self._signature.parameters.items()}
        if inspect.Parameter.VAR_POSITIONAL in kinds.values():  # what stands before it cannot be passed by name
            return bound.args, bound.kwargs
        unnamed = [value for name, value in bound.arguments.items() if kinds[name] is inspect.Parameter.POSITIONAL_ONLY]
        named = {name: value for name, value in bound.arguments.items() if kinds[name] is inspect.Parameter.POSITIONAL_OR_KEYWORD}
        return tuple(unnamed), {**named, **bound.kwargs}

    def written(self, args: tuple[Any, ...], kwargs: dict[str, Any], how: Written) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A canonical call as it was written; what it left to defaults is left out."""
        if inspect.Parameter.VAR_POSITIONAL in {parameter.kind for parameter in self._signature.parameters.values()}:
            return args, kwargs
        names = [*self._signature.parameters]
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        return tuple(values[name] for name in names[: how[0]]), {name: values[name] for name in how[1]}

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What is given to each parameter; nothing of those that are left to their defaults."""
        return dict(self._signature.bind(*args, **kwargs).arguments)

    def order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """For each tensor of the canonical call, its place among the tensors of the call as written."""
        written: list[torch.Tensor] = []
        form = flatten((args, kwargs), written)
        marks = [torch.empty(0) for _ in written]  # distinct objects, though the call may pass one tensor twice
        canonical: list[torch.Tensor] = []
        flatten(self.canonical(*fill(form, iter(marks))), canonical)
        places = {id(mark): place for place, mark in enumerate(marks)}
        return [places[id(mark)] for mark in canonical]
