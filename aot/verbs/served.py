"""Served: under `aot run`, a pipeline is loaded from artifacts at its first call, and what was used is written down after each."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aot.verbs.hook import note, write

if TYPE_CHECKING:
    from aot.artifact.ledger import Ledger

ASKED = "asked.json"  # in the folder: how to load


@dataclass(slots=True)
class _Pipe:
    """One pipeline: what of it was loaded, of which modules, and how often it was called."""

    number: int
    modules: tuple[int, ...] = ()
    ledger: Ledger | None = None
    calls: int = 0
    before: dict[str, Any] = field(default_factory=dict)  # what the ledger had when this process was forked: another's


class Served:
    """The pipelines of this process. Nothing that goes wrong with loading is the program's affair: it computes eagerly then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asked: dict[str, Any] = json.loads((folder / ASKED).read_text())
        self._pipes: WeakKeyDictionary[Any, _Pipe] = WeakKeyDictionary()
        self._numbers, self._inside = count(), threading.local()
        self._lock, self._process = threading.Lock(), os.getpid()

    def call(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """At the first call, when it is on its device with its adapters, and again when its parts have become others, it is loaded."""
        if getattr(self._inside, "now", False):
            return run()
        self._forked()
        known = self._loaded(pipe)
        self._inside.now = True
        try:
            return run()
        finally:
            self._inside.now = False
            with self._lock:
                known.calls += 1
                write(self._folder / f"{os.getpid()}-{known.number}.json", self._report(pipe, known))

    def _forked(self) -> None:
        """In a process that was forked from one that had called pipelines, count from here."""
        if self._process == os.getpid():
            return
        self._lock, self._process = threading.Lock(), os.getpid()  # the other's may have been held by a thread that is not here
        for known in self._pipes.values():
            known.calls, known.before = 0, known.ledger.to_json() if known.ledger else {}

    def _loaded(self, pipe: Any) -> _Pipe:
        with self._lock:
            known = self._pipes.setdefault(pipe, _Pipe(next(self._numbers)))
            try:
                self._load(pipe, known)
            except Exception as error:  # noqa: BLE001 - told in the proof
                note(self._folder, pipe, error, what="served")
            return known

    def _load(self, pipe: Any, known: _Pipe) -> None:
        from aot.artifact.ledger import newest
        from aot.errors import Unsupported
        from aot.model.capture import modules_of
        from aot.serving.nexfort import enable
        from aot.serving.standin import standing

        modules = modules_of(pipe)
        if known.modules == (found := tuple(map(id, modules.values()))):
            return
        known.modules = found
        for name, module in modules.items():
            if any(hasattr(child, "_orig_mod") or child._compiled_call_impl is not None for child in module.modules()):
                raise Unsupported(f"the program compiles {name} itself, which is left to it.")
            if known.ledger is None and standing(module):
                raise Unsupported("the program calls aot itself, which is left to it.")
        enable(pipe, self._asked["store"], options=self._asked["options"], on_miss="eager")
        known.ledger = newest()

    def _report(self, pipe: Any, known: _Pipe) -> dict[str, Any]:
        account = known.ledger.to_json() if known.ledger else {}
        if known.before:
            for counts in ("hits", "misses"):
                account[counts] = {what: number - known.before[counts].get(what, 0) for what, number in account[counts].items()}
            account["compiled"] -= known.before["compiled"]
        return {"pipeline": type(pipe).__name__, "pid": os.getpid(), "calls": known.calls, **account}
