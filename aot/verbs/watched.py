"""Watched: under `aot record`, every call of a pipeline is written down while it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aot.verbs.hook import Looker, note


class _Pipe:
    """What of one pipeline was written down so far. Its modules are let go after each call: the program may free them."""

    def __init__(self, pipe: Any, number: int) -> None:
        from aot.model.recorder import Recorder

        self.recorder, self.number, self.lock = Recorder(pipe, computes=True), number, threading.Lock()
        self.value: dict[str, Any] = {}
        self.written = 0

    def write(self, pipe: Any, file: Path) -> None:
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
            write(new, file)


class Watched(Looker[_Pipe]):
    """The pipelines of this process that were called."""

    def outermost(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """Nothing that goes wrong with writing down is the program's affair: it is noted beside the Records."""
        try:
            known = self.of(pipe)
            known.recorder.look(pipe)
        except Exception as error:  # noqa: BLE001
            note(self.folder, pipe, error, what="recorded")
            return run()
        with self.within(), known.recorder.watching():
            result = run()
        try:
            known.write(pipe, self.report(known.number))
        except Exception as error:  # noqa: BLE001
            note(self.folder, pipe, error, what="recorded")
        return result

    def begun(self, pipe: Any, number: int) -> _Pipe:
        return _Pipe(pipe, number)

    def count_anew(self, kept: _Pipe) -> None:
        kept.recorder.count_anew()
        kept.lock, kept.written = threading.Lock(), 0
