"""Explain: what is asked for, part by part, against every artifact of a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aot.artifact.key import ONLY_ASKED, Key
from aot.machine.target import Difference, Target, Weight

if TYPE_CHECKING:
    from aot.cache_store.store import Store
    from aot.serving.resolve import Candidate


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
    from aot.serving.resolve import Accepted, candidates

    facts = {path: asked.of_component(path) for path in asked.components()}
    classes = {of["class"] for of in facts.values()}
    near = candidates(store, modules=facts, wish=asked.shared())
    judged: dict[str, Candidate] = {str(one.entry.digest): one for one in near}
    found = []
    for entry in store.entries():
        key = Key(entry.key)
        if not classes & {key.of_component(path)["class"] for path in key.components()}:
            continue
        verdict = judged[str(entry.digest)].verdict if str(entry.digest) in judged else None
        serves = tuple(verdict.components) if isinstance(verdict, Accepted) else ()
        found.append(Explained(f"{entry.ref.name}@{entry.ref.key.short}", str(entry.digest), serves, tuple(_parts(key, asked))))
    return sorted(found, key=lambda one: (-len(one.serves), one.blocking, len(one.parts)))


def _parts(built: Key, asked: Key) -> Iterable[Part]:
    machines = Target.of_parts(built.parts).check(Target.of_parts(asked.parts), also=built.parts.get("also", "").split())
    parts = [Part(name, theirs, mine, *meaning(name, machines)) for name, theirs, mine in built.diff(asked)]
    order = [str(Weight.BLOCKING), str(Weight.DEGRADING), str(Weight.HARMLESS)]
    return sorted(parts, key=lambda part: order.index(part.weight))


_MEANINGS = {
    "fingerprint": (Weight.BLOCKING, "another model: its structure, attributes or weights' forms"),
    "class": (Weight.BLOCKING, "another class"),
    "dtype": (Weight.BLOCKING, "weights of another type"),
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
