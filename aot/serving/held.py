"""Held: what a compilation did to modules and to this process, undone once, by `restore` or when the modules are gone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn

Undo: TypeAlias = Callable[[nn.Module], None]


@dataclass(slots=True)
class _Held:
    """Of one module: what to undo on it, in order, and the shares that it has in what is held for several."""

    undo: list[Undo] = field(default_factory=list)
    shares: list[Any] = field(default_factory=list)


# by module, and not in its own attributes: those are copied, pickled and compared
_held: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()


def on_restore(module: nn.Module, undo: Undo) -> None:
    """Have `undo(module)` called by `give_back`, the last one first. It must not hold on to the module."""
    _held.setdefault(module, _Held()).undo.append(undo)


def share(modules: Iterable[nn.Module], release: Callable[[], None]) -> None:
    """Have `release` called once every one of `modules` was given back, or is gone."""
    left = list(modules)
    count = [len(left)]

    def leave() -> None:
        count[0] -= 1
        if count[0] == 0:
            release()

    for module in left:
        _held.setdefault(module, _Held()).shares.append(weakref.finalize(module, leave))


def give_back(module: nn.Module) -> None:
    """Undo what was done to `module`. Fine where nothing was."""
    held = _held.pop(module, _Held())
    for undo in reversed(held.undo):
        undo(module)
    for finalize in held.shares:
        finalize()
