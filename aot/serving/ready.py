"""Ready: whether a pipeline is served by loaded graphs, for a health check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from aot.serving.dispatch import dispatchers
from aot.serving.nexfort import components
from aot.serving.standin import standing


@dataclass(frozen=True, slots=True)
class Readiness:
    """True where every denoiser and decoder has graphs in its place and is what they were loaded for; else `why` it is not, a sentence
    a component."""

    why: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.why

    def __str__(self) -> str:
        return "; ".join(self.why) or "ready: nothing will compile"


def ready(compiled: Any) -> Readiness:
    """Whether a request would be served by what `compile`, `compile_pipe` or `enable` has loaded into a module or pipeline. Costs some
    milliseconds a component, runs nothing. A call of a size that no graph was built for may still miss: `aot.stats()` counts those."""
    modules = {"module": compiled} if isinstance(compiled, nn.Module) else components(compiled, ())
    return Readiness(tuple(_lacks(modules)) if modules else ("there is nothing in it to compile",))


def _lacks(modules: dict[str, nn.Module]) -> Iterator[str]:
    for path, module in modules.items():
        graphs = dispatchers(module).values()
        if not standing(module):
            yield f"{path}: nothing was loaded for it"
        elif not graphs:
            yield f"{path}: no graph was loaded for it, its first call compiles"
        elif changed := next(filter(None, (dispatcher.differs() for dispatcher in graphs)), None):
            yield f"{path}: {changed}"
