"""Sealed: whether a live module is what the graphs of a part of an artifact were built from, quick enough to be asked at every call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from aot.artifact.book import Kind
from aot.model.attributes import SEALS
from aot.model.fingerprint import Fingerprint
from aot.model.seal import Seal
from aot.serving.shapebook import ShapeBook


@dataclass(eq=False, slots=True, weakref_slot=True)
class Part:
    """The graphs of one kind of module, of every artifact that serves it. It knows no module, and so keeps none alive."""

    kind: Kind
    graphs: ShapeBook

    def differs(self, module: nn.Module) -> str | None:
        """What makes `module` another than the graphs were built from, in words, or None; sealed is then what was looked at."""
        live = Fingerprint.of(module, served=True)
        reason = self.kind.differs(module, live)
        kept = _kept(module)  # before it is sealed: what is put on a module is seen by its seal
        seal = Seal(module, live.met, self.kind.code)
        if reason is None and not seal.holds():
            reason = "it holds something that is never equal to itself"
        kept.parts[self] = seal, reason
        return reason

    def fits(self, module: nn.Module) -> bool:
        """The same, by the seal where nothing has changed since it was put."""
        found = _kept(module).parts.get(self)
        return (found[1] if found and found[0].holds() else self.differs(module)) is None


@dataclass(slots=True)
class _Kept:
    """The seals on a module, with it, since each holds on to what it is of; a copy or a pickle of the module has none."""

    parts: WeakKeyDictionary[Part, tuple[Seal, str | None]] = field(default_factory=WeakKeyDictionary)

    def __reduce__(self) -> Any:
        return dict, ()


def _kept(module: nn.Module) -> _Kept:
    own = vars(module)
    if not isinstance(own.get(SEALS), _Kept):
        own[SEALS] = _Kept()
    found: _Kept = own[SEALS]
    return found
