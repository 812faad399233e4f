"""Watched: under `aot record`, every call of a pipeline is written down while it computes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from aot.verbs.hook import note


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


class Watched:
    """The pipelines of this process that were called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pipes: WeakKeyDictionary[Any, _Pipe] = WeakKeyDictionary()
        self._numbers, self._inside = count(), threading.local()
        self._lock, self._process = threading.Lock(), os.getpid()

    def call(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """Nothing that goes wrong with writing down is the program's affair: it is noted beside the Records."""
        if getattr(self._inside, "now", False):
            return run()
        self._forked()
        try:
            known = self._known(pipe)
            known.recorder.look(pipe)
        except Exception as error:  # noqa: BLE001
            note(self._folder, pipe, error, what="recorded")
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
            note(self._folder, pipe, error, what="recorded")
        return result

    def _forked(self) -> None:
        """In a process that was forked from one that had called pipelines, count from here."""
        if self._process == os.getpid():
            return
        self._lock, self._process = threading.Lock(), os.getpid()  # the other's may have been held by a thread that is not here
        for known in self._pipes.values():
            known.recorder.count_anew()
            known.lock, known.written = threading.Lock(), 0

    def _known(self, pipe: Any) -> _Pipe:
        with self._lock:
            if pipe not in self._pipes:
                self._pipes[pipe] = _Pipe(pipe, next(self._numbers))
            return self._pipes[pipe]
