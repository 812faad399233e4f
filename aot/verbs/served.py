"""Served: under `aot run`, a pipeline is loaded from artifacts at its first call, and what was used is written down after each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.verbs.hook import Looker, note, write

if TYPE_CHECKING:
    from aot.artifact.ledger import Ledger

ASKED = "asked.json"  # in the folder: how to load


@dataclass(slots=True)
class _Pipe:
    """One pipeline: what of it was loaded, of which modules, and how often it was called."""

    kind: str  # its class's name
    number: int
    modules: tuple[int, ...] = ()
    ledger: Ledger | None = None
    calls: int = 0
    before: dict[str, Any] = field(default_factory=dict)  # what the ledger had when this process was forked: another's


class Served(Looker[_Pipe]):
    """The pipelines of this process. Nothing that goes wrong with loading is the program's affair: it computes eagerly then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._asked: dict[str, Any] = json.loads((folder / ASKED).read_text())

    def outermost(self, pipe: Any, run: Callable[[], Any]) -> Any:
        """At the first call, when it is on its device with its adapters, and again when its parts have become others, it is loaded."""
        known = self._loaded(pipe)
        try:
            with self.within():
                return run()
        finally:
            with self.lock:
                known.calls += 1
                write(self.report(known.number), _told(known))

    def begun(self, pipe: Any, number: int) -> _Pipe:
        return _Pipe(type(pipe).__name__, number)

    def count_anew(self, kept: _Pipe) -> None:
        kept.calls, kept.before = 0, kept.ledger.to_json() if kept.ledger else {}

    def _loaded(self, pipe: Any) -> _Pipe:
        known = self.of(pipe)
        with self.lock:
            try:
                self._load(pipe, known)
            except Exception as error:  # noqa: BLE001 - told in the proof
                note(self.folder, pipe, error, what="served")
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


def _told(known: _Pipe) -> dict[str, Any]:
    """What this process has used of a pipeline."""
    account = known.ledger.to_json() if known.ledger else {}
    if known.before:
        for counts in ("hits", "misses"):
            account[counts] = {what: number - known.before[counts].get(what, 0) for what, number in account[counts].items()}
        account["compiled"] -= known.before["compiled"]
    return {"pipeline": known.kind, "pid": os.getpid(), "calls": known.calls, **account}
