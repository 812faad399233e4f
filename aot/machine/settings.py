"""Process settings: what holds below `torch.backends` for the whole process, and who in it relies on that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeAlias

import torch

from aot.errors import Conflict

log = logging.getLogger("aot")

Settings: TypeAlias = Mapping[str, bool]

# torch's own defaults, 2.11 to 2.15: what a mode that says nothing of them was built and checked with
DEFAULTS: Settings = {
    "cuda.matmul.allow_bf16_reduced_precision_reduction": True,
    "cuda.matmul.allow_fp16_reduced_precision_reduction": True,
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": True,
    "cudnn.benchmark": False,
}


@dataclass(slots=True)
class _Process:
    """What is relied on in this process, by whom, and what held before anybody did."""

    claims: list[tuple[str, Settings]] = field(default_factory=list)
    before: dict[str, bool] = field(default_factory=dict)


_process = _Process()


def complete(asked: Settings) -> dict[str, bool]:
    """Every setting: `asked` over torch's defaults. An artifact relies on all of them, whether its mode names them or not."""
    return {**DEFAULTS, **asked}


def claim(owner: str, settings: Settings) -> Callable[[], None]:
    """Set what `owner` relies on; return what gives it back, which restores the process once nobody relies on it.

    Raises Conflict, having set nothing, when somebody in this process relies on the opposite.
    """
    for holder, held in _process.claims:
        for name, value in settings.items():
            if held.get(name, value) != value:
                raise Conflict(
                    f"{owner} needs torch.backends.{name} = {value}, and {holder}, compiled before in this process, {held[name]}.",
                    remedy="give both the same mode, serve them from two processes, or aot.restore() the other first.",
                )
    entry = (owner, settings)
    _process.claims.append(entry)
    for name, value in settings.items():
        _process.before.setdefault(name, attrgetter(name)(torch.backends))
        _put(name, value)
    return lambda: _release(entry)


def _release(entry: tuple[str, Settings]) -> None:
    _process.claims = [other for other in _process.claims if other is not entry]
    held = {name for _, settings in _process.claims for name in settings}
    for name in [name for name in _process.before if name not in held]:
        _put(name, _process.before.pop(name))


def _put(name: str, value: bool) -> None:
    owner, _, last = name.rpartition(".")
    backend: Any = attrgetter(owner)(torch.backends)
    if getattr(backend, last) != value:
        log.info("setting torch.backends.%s = %s for this process", name, value)
        setattr(backend, last, value)
