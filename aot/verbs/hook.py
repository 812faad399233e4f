"""Hook: what runs inside of a script under `aot record` and `aot run`: every call of a pipeline passes through one of ours."""

from __future__ import annotations

import functools
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from aot.environment import RUN, WATCH
from aot.verbs.stores import log

Kept = TypeVar("Kept")
_BASES = ("DiffusionPipeline", "ModularPipeline")
_MARK = "_aot_watched"


class Looker(ABC, Generic[Kept]):
    """Looks on at calls of pipelines, in all threads of a process, and keeps something of each pipeline. Its reports go to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self._pipes: WeakKeyDictionary[Any, Kept] = WeakKeyDictionary()
        self._numbers, self._inside, self._process = count(), threading.local(), os.getpid()

    def call(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """What `run` returns, which is the call; one within another is none of its own."""
        if getattr(self._inside, "now", False):
            return run()
        self._forked()
        return self.outermost(pipe, run)

    @abstractmethod
    def outermost(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """The same, of a call that is within no other."""

    @abstractmethod
    def begun(self, pipe: Any, number: int) -> Kept:
        """What is kept of a pipeline that is new, the process's own `number` of it."""

    @abstractmethod
    def count_anew(self, kept: Kept) -> None:
        """From now on calls are counted from none: those up to here were another process's."""

    def of(self, pipe: Any) -> Kept:
        """What is kept of a pipeline."""
        with self.lock:
            if pipe not in self._pipes:
                self._pipes[pipe] = self.begun(pipe, next(self._numbers))
            return self._pipes[pipe]

    @contextmanager
    def within(self) -> Iterator[None]:
        """Within, calls of this thread are within another."""
        self._inside.now = True
        try:
            yield
        finally:
            self._inside.now = False

    def report(self, number: int) -> Path:
        """The file of what is told of a pipeline."""
        return self.folder / f"{os.getpid()}-{number}.json"

    def _forked(self) -> None:
        """In a process that was forked from one that had called pipelines, count from here."""
        if self._process == os.getpid():
            return
        self.lock, self._process = threading.Lock(), os.getpid()  # the other's may have been held by a thread that is not here
        for kept in self._pipes.values():
            self.count_anew(kept)


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
def _looker() -> Looker[Any]:
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


def noted(folder: Path) -> list[str]:
    """Every word that was left, a sentence each."""
    told = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*.note"))]
    return [f"{note['pipeline']}: {note['error']}" for note in told]


def write(path: Path, value: Any) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    try:
        part.write_text(json.dumps(value))
        part.replace(path)
    except OSError:  # a program may take the folder away, and goes on
        pass
