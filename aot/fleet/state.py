"""State: what a store has of a matrix, what is to build and why, and what that will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aot.artifact.key import Key
from aot.cache_store.store import Entry
from aot.fleet.keys import PER_TORCH, Known
from aot.fleet.matrix import Cell
from aot.machine.sku import CPU, find_sku

_FIRST = ("recipe", "variant", "target.sku", "target.torch", "mode", "shapes")  # in which two artifacts are most alike
_LOOKED_AT = 50  # the newest of a name
_OF_GPU = ("tuning", "layers")  # what a build on the GPU itself has otherwise than one without it


@dataclass(frozen=True, slots=True)
class State:
    """Of one cell. `entry` is what the store has of it; without one it is to build, for `why`, and that will take about `seconds`
    and `memory` bytes, where something like it was built before."""

    cell: Cell
    known: Known
    entry: Entry | None = None
    why: str = ""
    seconds: float | None = None
    memory: int | None = None

    @property
    def to_build(self) -> bool:
        return self.entry is None

    def to_json(self) -> dict[str, Any]:
        return {
            "cell": str(self.cell),
            "arguments": self.cell.arguments(),
            "key": self.known.key and str(self.known.key.digest),
            "graphs": list(self.known.graphs),
            "present": self.entry and str(self.entry.digest),
            "why": self.why,
            "expected_s": self.seconds,
            "expected_memory": self.memory,
        }


def states(cells: Sequence[Cell], known: Iterable[Known], entries: Iterable[Entry]) -> list[State]:
    """Of each cell, against what a store has."""
    stored = _Stored(entries)
    return [stored.state(cell, found) for cell, found in zip(cells, known, strict=True)]


class _Stored:
    """What a store has, by what cells are looked up by."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_key: dict[str, Entry] = {}
        self._similar: dict[int, Entry] = {}
        self._alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._named: dict[str, list[Entry]] = defaultdict(list)
        for entry in sorted(entries, key=lambda entry: entry.created):
            self._by_key[entry.ref.key.hex] = entry
            self._similar[_but(entry.key, "layers")] = entry
            self._similar[_but(entry.key, "layers", *PER_TORCH[1:])] = entry
            self._alike[entry.ref.name, entry.key.get("target.sku", "")].append(entry)
            self._named[entry.ref.name].append(entry)

    def state(self, cell: Cell, known: Known) -> State:
        wanted = known.key or known.like
        if wanted is None:
            return State(cell, known, why=known.why)
        if (entry := self._there(cell, known, wanted)) is not None:
            return State(cell, known, entry)
        name = wanted.parts["recipe"]
        alike = self._alike.get((name, wanted.parts.get("target.sku", "")), [])[-_LOOKED_AT:]
        nearest = min(alike, key=lambda one: _distance(one, wanted), default=None)
        like = nearest or max(self._named.get(name, [])[-_LOOKED_AT:], key=lambda one: _likeness(one, wanted), default=None)
        seconds, memory = _took(like, len(known.graphs)) if like else (None, None)
        return State(cell, known, None, known.why or _moved(nearest, wanted, cell), seconds, memory)

    def _there(self, cell: Cell, known: Known, wanted: Key) -> Entry | None:
        """The artifact of that key. One that the GPU itself built is that of a cell which needs no GPU too; for one that does, nothing
        else will do."""
        if not known.simulated:
            return self._by_key.get(wanted.digest.hex) if known.key else self._similar.get(_but(wanted.parts, "layers"))
        tuned = None if "--untuned" in cell.options else self._similar.get(_but(wanted.parts, *_OF_GPU))
        return tuned or (None if cell.on_gpu else self._similar.get(_but(wanted.parts, "layers")))


def _but(parts: Mapping[str, str], *names: str) -> int:
    """What is the same for two keys that differ in parts of these names alone: a number, for the parts of 100,000 take a gigabyte."""
    return hash(frozenset((name, value) for name, value in parts.items() if name not in names))


def _distance(entry: Entry, key: Key) -> int:
    return sum(1 for _ in key.diff(Key(entry.key)))


def _likeness(entry: Entry, key: Key) -> list[bool]:
    return [entry.key.get(name) == key.parts.get(name) for name in _FIRST]


def _moved(nearest: Entry | None, key: Key, cell: Cell) -> str:
    """Why there is none, in words: the parts in which the nearest artifact for that machine differs."""
    if nearest is None:
        return f"nothing was built of {key.parts['recipe']} for {CPU if cell.gpu == CPU else find_sku(cell.gpu).alias}"
    moved = [_part(name, theirs, mine) for name, mine, theirs in key.diff(Key(nearest.key))]
    more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
    return f"since {nearest.digest.short}: {', '.join(moved[:3])}{more}"


def _part(name: str, before: str | None, now: str | None) -> str:
    if any(value and value.startswith("sha256:") for value in (before, now)):
        return f"{name} moved"
    return f"{name} {before or 'none'} -> {now or 'none'}"


def _took(entry: Entry, graphs: int) -> tuple[float | None, int | None]:
    """What building as many graphs will take, by a manifest's own figures: seconds, and bytes of memory."""
    compiled = entry.measured.get("compile_s") or {}
    each = sum(compiled.values()) / len(compiled) if compiled else None
    whole = entry.producer.get("cold_build")
    beside = max(float(whole) - sum(compiled.values()), 0.0) if whole else 0.0
    seconds = None if each is None else round(each * max(graphs, 1) + beside, 1)
    return seconds, (entry.measured.get("memory") or {}).get("peak_bytes")
