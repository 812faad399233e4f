"""Watched: what runs inside of a script under `aot record`: every call of a pipeline is written down while it computes."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from aot.environment import WATCH
from aot.verbs.stores import log

_BASES = ("DiffusionPipeline", "ModularPipeline")
_MARK = "_aot_watched"


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
        return _watched.call(pipe, lambda: call(pipe, *args, **kwargs))

    setattr(watched, _MARK, True)
    kind.__call__ = watched


class _Pipe:
    """What of one pipeline was written down so far. Its modules are let go after each call: the program may free them."""

    def __init__(self, pipe: Any, number: int) -> None:
        from aot.model.recorder import Recorder

        self.recorder, self.number, self.lock = Recorder(pipe, computes=True), number, threading.Lock()
        self.value: dict[str, Any] = {}
        self.written = 0

    def write(self, pipe: Any, folder: Path) -> None:
        """Describe what is new; nothing is made for it, in the program's own process."""
        from aot.request.described import described
        from aot.request.record import Record
        from aot.request.saved import write

        with self.lock:
            record = Record.of(self.recorder, pipe)
            self.recorder.modules.clear()
            counted = sum(call.count for call in record.calls)
            if not record.calls or counted == self.written:
                return
            self.written, new = counted, described(record)
            for field in ("roots", "components"):
                new[field] = self.value.get(field, {}) | new[field]
            self.value = new
            write(new, folder / f"{os.getpid()}-{self.number}.json")


class _Watched:
    """The pipelines of this process that were called."""

    def __init__(self) -> None:
        self._pipes: WeakKeyDictionary[Any, _Pipe] = WeakKeyDictionary()
        self._numbers, self._lock, self._inside = count(), threading.Lock(), threading.local()

    def call(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """Nothing that goes wrong with writing down is the program's affair: it is noted beside the Records."""
        if getattr(self._inside, "now", False):
            return run()
        try:
            known = self._known(pipe)
            known.recorder.look(pipe)
        except Exception as error:  # noqa: BLE001
            self._note(pipe, error)
            return run()
        self._inside.now = True
        try:
            with known.recorder.watching():
                result = run()
        finally:
            self._inside.now = False
        try:
            known.write(pipe, self._folder)
        except Exception as error:  # noqa: BLE001
            self._note(pipe, error)
        return result

    def _known(self, pipe: Any) -> _Pipe:
        with self._lock:
            if pipe not in self._pipes:
                self._pipes[pipe] = _Pipe(pipe, next(self._numbers))
            return self._pipes[pipe]

    def _note(self, pipe: Any, error: Exception) -> None:
        said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        log(f"{type(pipe).__name__} is not recorded: {said}")
        try:
            note = self._folder / f"{os.getpid()}.note"
            part = note.with_suffix(".part")
            part.write_text(json.dumps({"pipeline": type(pipe).__name__, "error": said}))
            part.replace(note)
        except OSError:
            pass

    @property
    def _folder(self) -> Path:
        return Path(os.environ[WATCH])


_watched = _Watched()
