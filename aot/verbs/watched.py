"""Watched: what runs inside of a script under `aot record`: every call of a pipeline is written down while it computes."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable
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


class _Watched:
    """The pipelines of this process that were called, and what of them was written down so far."""

    def __init__(self) -> None:
        self._recorders: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._inside = threading.local()
        self._saved: dict[int, int] = {}

    def call(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """Nothing that goes wrong with writing down is the script's affair: it is noted beside the Records."""
        if getattr(self._inside, "now", False):
            return run()
        try:
            number, recorder = self._recorder(pipe)
        except Exception as error:  # noqa: BLE001
            self._note(pipe, error)
            return run()
        self._inside.now = True
        try:
            with recorder.watching():
                result = run()
        finally:
            self._inside.now = False
        try:
            self._save(pipe, number, recorder)
        except Exception as error:  # noqa: BLE001
            self._note(pipe, error)
        return result

    def _recorder(self, pipe: Any) -> tuple[int, Any]:
        from aot.model.recorder import Recorder

        with self._lock:
            if pipe not in self._recorders:
                self._recorders[pipe] = len(self._recorders), Recorder(pipe, computes=True)
            return self._recorders[pipe]

    def _save(self, pipe: Any, number: int, recorder: Any) -> None:
        from aot.request.record import Record

        with self._lock:
            if recorder.calls and self._saved.get(number) != len(recorder.calls):  # what is new is worth a second
                Record.of(recorder, pipe).save(self._folder / f"{os.getpid()}-{number}.json")
                self._saved[number] = len(recorder.calls)

    def _note(self, pipe: Any, error: Exception) -> None:
        said = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
        log(f"{type(pipe).__name__} is not recorded: {said}")
        try:
            note = self._folder / f"{os.getpid()}.note"
            note.write_text(json.dumps({"pipeline": type(pipe).__name__, "error": said}))
        except OSError:
            pass

    @property
    def _folder(self) -> Path:
        return Path(os.environ[WATCH])


_watched = _Watched()
