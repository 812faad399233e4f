"""Stage: a part of long work, as it is told to whoever waits: when it begins, and again when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias


@dataclass(frozen=True, slots=True)
class Stage:
    """`what` names it: no two under way are called the same. In seconds: what it took, and what it took the last time."""

    what: str
    seconds: float | None = None  # None: it begins
    expected: float | None = None
    component: str = ""  # that it is about, if it is about one

    @classmethod
    def of_event(cls, event: dict[str, Any]) -> Self:
        """As a work process told it."""
        return cls(event["what"], event["seconds"], component=event["component"])

    def to_event(self) -> dict[str, Any]:
        return {"what": self.what, "seconds": self.seconds, "component": self.component}

    def __str__(self) -> str:
        """The line of a log."""
        return self.what if self.seconds is None else f"{self.what}: {self.seconds:.1f} s"


Progress: TypeAlias = Callable[[Stage], None]


@contextmanager
def stage(progress: Progress, what: str) -> Iterator[None]:
    """Tell that `what` begins, and on success that it is done."""
    started = time.perf_counter()
    progress(Stage(what))
    yield
    progress(Stage(what, time.perf_counter() - started))
