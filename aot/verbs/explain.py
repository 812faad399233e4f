"""Explain: what is asked for, part by part, against every artifact of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aot.artifact.key import ONLY_ASKED, Key
from aot.machine.fit import built_for
from aot.machine.target import Difference, Target, Weight

if TYPE_CHECKING:
    from aot.cache_store.store import Store


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a key in which an artifact differs from what is asked for."""

    name: str
    built: str | None
    asked: str | None
    weight: str
    why: str


@dataclass(frozen=True, slots=True)
class Explained:
    """One artifact: the components that it would serve, and every part in which it differs, the weightiest first."""

    name: str
    digest: str
    serves: tuple[str, ...]
    parts: tuple[Part, ...]

    @property
    def blocking(self) -> int:
        return sum(part.weight == Weight.BLOCKING for part in self.parts)


def explain(asked: Key, store: Store) -> list[Explained]:
    """Every artifact of `store` that is of a model of the same classes as the key `asked`, those that would serve most first, then
    those in whose way least stands. Nothing but the store's list is read, which nobody has verified."""
    from aot.serving.resolve import Accepted, judge

    facts, wish = {path: asked.of_component(path) for path in asked.components()}, asked.shared()
    classes = {of["class"] for of in facts.values()}
    order = list(map(str, (Weight.BLOCKING, Weight.DEGRADING, Weight.HARMLESS)))
    found = []
    for entry in store.entries():
        key = Key(entry.key)
        if not classes & {key.of_component(path)["class"] for path in key.components()}:
            continue
        verdict = judge(key, modules=facts, wish=wish)
        serves = tuple(verdict.components) if isinstance(verdict, Accepted) else ()
        parts = tuple(sorted(compared(key, asked), key=lambda part: order.index(part.weight)))
        found.append(Explained(f"{entry.ref.name}@{entry.ref.key.short}", str(entry.digest), serves, parts))
    return sorted(found, key=lambda one: (-len(one.serves), one.blocking, len(one.parts)))


def compared(built: Key, asked: Key) -> list[Part]:
    """Every part in which two keys differ, and what it comes to where the one is there and the other is asked for."""
    machines = built_for(built.parts, Target.of_parts(asked.parts))
    return [Part(name, theirs, mine, *meaning(name, machines)) for name, theirs, mine in built.diff(asked)]


_MEANINGS = {
    "fingerprint": (Weight.BLOCKING, "another model: its structure, attributes or weights' forms"),
    "class": (Weight.BLOCKING, "another class"),
    "dtype": (Weight.BLOCKING, "weights of another type"),
    "attention": (Weight.BLOCKING, "attention is computed by another backend"),
    "weights": (Weight.BLOCKING, "frozen: the weights themselves are in the graph"),
    "config": (Weight.HARMLESS, "the fingerprint decides"),
    "source": (Weight.HARMLESS, "the functions that were traced are compared themselves when it is loaded"),
    "state": (Weight.HARMLESS, "as it is before or after its first call; compared when it is loaded"),
}


def meaning(name: str, machines: Sequence[Difference]) -> tuple[str, str]:
    """What it comes to that two keys differ in a part: its weight and why. `machines`: how their targets differ."""
    if name.startswith("target."):
        field = name.removeprefix("target.")
        told = next((one for one in machines if one.field == field), None)
        return (str(told.weight), told.why) if told else (str(Weight.HARMLESS), "told apart by no graph")
    if name.startswith("component/"):
        weight, why = _MEANINGS[name.rpartition("/")[2]]
        return str(weight), why
    if name.startswith("signatures/"):
        return str(Weight.DEGRADING), "it serves other calls"
    if name.startswith(ONLY_ASKED):
        return str(Weight.HARMLESS), "what was asked for at the build; what it serves is its signatures"
    return str(Weight.BLOCKING), "compiled in another way"
