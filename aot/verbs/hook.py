"""Hook: what runs inside of a script under `aot record` and `aot run`: every call of a pipeline passes through one of ours."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from aot.environment import RUN, WATCH
from aot.verbs.stores import log

_BASES = ("DiffusionPipeline", "ModularPipeline")
_MARK = "_aot_watched"


class Looker(Protocol):
    """Looks on at calls of pipelines, in all threads of a process."""

    def call(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """What `run` returns, which is the call."""
        ...


def watch(module: ModuleType) -> None:
    """Look on at every call of the pipelines whose base `module` defines, those defined later too."""
    for base in filter(None, (getattr(module, name, None) for name in _BASES)):
        for kind in (base, *_below(base)):
            _wrap(kind)
        base.__init_subclass__ = classmethod(_beginning(base))


def _beginning(base: Any) -> Callable[..., None]:
    """What a class begins with that is derived from `base`: what it would, and then it is watched too."""
    own = vars(base).get("__init_subclass__")

    def begin(cls: Any, /, **kwargs: Any) -> None:
        if own is None:
            super(base, cls).__init_subclass__(**kwargs)
        else:
            own.__func__(cls, **kwargs)
        _wrap(cls)

    return begin


def _below(kind: Any) -> list[Any]:
    return [each for child in kind.__subclasses__() for each in (child, *_below(child))]


def _wrap(kind: Any) -> None:
    call = vars(kind).get("__call__")
    if call is None or hasattr(call, _MARK):
        return

    @functools.wraps(call)
    def watched(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        return _looker().call(pipe, lambda: call(pipe, *args, **kwargs))

    setattr(watched, _MARK, True)
    kind.__call__ = watched


@cache
def _looker() -> Looker:
    """The one of this process: the environment says which."""
    if os.environ.get(RUN):
        from aot.verbs.served import Served

        return Served(Path(os.environ[RUN]))
    from aot.verbs.watched import Watched

    return Watched(Path(os.environ[WATCH]))


def note(folder: Path, pipe: Any, error: Exception, *, what: str) -> None:
    """Leave word beside the reports that something of a pipeline went wrong, which is none of the program's affair."""
    said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    log(f"{type(pipe).__name__} is not {what}: {said}")
    write(folder / f"{os.getpid()}.note", {"pipeline": type(pipe).__name__, "error": said})


def write(path: Path, value: Any) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value))
        part.replace(path)
    except OSError:  # a program may take the folder away, and goes on
        pass
