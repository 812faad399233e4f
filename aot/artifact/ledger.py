"""Ledger: what was loaded, what was hit, what was missed, and what it cost. "Installed but inert" must be visible."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

log = logging.getLogger("aot")


class Counted(Protocol):
    """A loaded graph, as far as the account is concerned."""

    hits: int

    def __str__(self) -> str: ...


@dataclass(slots=True)
class Ledger:
    """The account of one `compile` or `compile_pipe`."""

    # A sentence names what differs, a shape or a value of the call: a server whose every call differs would keep one a call, for
    # ever. A hundred are more than anybody reads; a key or a fingerprint within one may be as long as a model's configuration.
    SENTENCES: ClassVar[int] = 100
    CHARACTERS: ClassVar[int] = 500
    FURTHER: ClassVar[str] = "further sentences: not kept"

    components: tuple[str, ...] = ()
    artifacts: list[str] = field(default_factory=list)  # digests, in the order they were loaded
    seconds: dict[str, float] = field(default_factory=dict)
    graphs: list[Counted] = field(default_factory=list)
    misses: Counter[str] = field(default_factory=Counter)  # calls not served, by the sentence that says why
    missed_calls: int = 0  # their sum, which threads may read while others miss
    served: dict[str, list[str]] = field(default_factory=dict)  # by component, the artifacts that its graphs are of, as name@key
    unserved: dict[str, str] = field(default_factory=dict)  # by component, why no graph was loaded for it
    compiled_before: int = field(default_factory=lambda: compiled_graphs())  # by torch.compile, of whomever, in this process

    def __deepcopy__(self, _: dict[int, Any]) -> Ledger:
        """Shared: a copied model goes on in the account of the one it was copied from."""
        return self

    def spent(self, what: str, seconds: float) -> None:
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent within to what was spent on `what`; nothing on error."""
        started = time.perf_counter()
        yield
        self.spent(what, time.perf_counter() - started)

    def missed(self, sentence: str) -> None:
        """Count a miss, and log its sentence the first time; those beyond `SENTENCES` are counted and logged as one.

        Takes no lock, since a call may miss at every step: threads that miss for the first time at once may keep a sentence
        each beyond that, or log one twice.
        """
        self.missed_calls += 1
        kept = sentence if len(sentence) <= self.CHARACTERS else sentence[: self.CHARACTERS - 1] + "…"
        new = kept not in self.misses
        if new and len(self.misses) >= self.SENTENCES:
            kept, new = self.FURTHER, self.FURTHER not in self.misses
        self.misses[kept] += 1
        if new:
            log.warning("%s", kept)

    def said(self) -> str:
        """What was loaded, in one line."""
        found = []
        if self.served:
            artifacts = dict.fromkeys(name for names in self.served.values() for name in names)
            what = _many(len(self.graphs), "graph") if self.graphs else "packages, compared at the first call of each form,"
            found.append(f"{', '.join(sorted(self.served))}: {what} from {', '.join(artifacts)}, {sum(self.seconds.values()):.2f} s")
        found += [f"{path} has no graph" for path in sorted(self.unserved)]
        promised = self.graphs and not self.unserved
        return "; ".join([*found, "nothing will compile"] if promised else found)

    def to_json(self) -> dict[str, Any]:
        hits: Counter[str] = Counter()
        for graph in self.graphs:  # graphs that differ in strides only read alike
            hits[str(graph)] += graph.hits
        return {
            "components": list(self.components),
            "artifacts": list(self.artifacts),
            "served": {path: list(names) for path, names in self.served.items()},
            "unserved": dict(self.unserved),
            "seconds": dict(self.seconds),
            "hits": dict(hits),
            "misses": dict(self.misses),
            "compiled": compiled_graphs() - self.compiled_before,
        }


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process up to now. Imports nothing: where Dynamo is not imported, none."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


def component_of_call(call: str) -> str:
    """Of which component a call is, as `hits` names it."""
    return call.split(maxsplit=1)[0]


def component_of_miss(sentence: str) -> str:
    """Of which component a sentence of `misses` is, which begins with a code."""
    return sentence.split()[1].rstrip(":")


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


@dataclass(slots=True)
class _Process:
    """What is kept for the process: what `aot.stats()` tells of."""

    ledgers: list[Ledger] = field(default_factory=list)


_process = _Process()


def open_ledger(components: tuple[str, ...]) -> Ledger:
    """A new account that `stats` will tell of."""
    ledger = Ledger(components=components)
    keep_ledger(ledger)
    return ledger


def keep_ledger(ledger: Ledger) -> bool:
    """Have `stats` tell of it; whether it did not before."""
    new = all(other is not ledger for other in _process.ledgers)
    if new:
        _process.ledgers.append(ledger)
    return new


def newest() -> Ledger:
    """The account that was opened last."""
    return _process.ledgers[-1]


def close_ledger(ledger: Ledger) -> None:
    """Stop telling of `ledger`: what it was about was restored."""
    _process.ledgers = [other for other in _process.ledgers if other is not ledger]


def stats() -> list[dict[str, Any]]:
    """One entry per `compile` or `compile_pipe` that is in force, oldest first.

    `artifacts`: digests loaded; `served`: by component those that serve it, as name@key; `unserved`: why nothing does. `seconds`: what
    finding, verifying, materialising and loading took. `hits`: calls served by a graph, by component and signature. `misses`: calls
    that were not, by the sentence that says why, of which the first hundred are kept. `compiled`: graphs that torch.compile has made in
    this process since, whoever asked for them.
    """
    return [ledger.to_json() for ledger in _process.ledgers]
