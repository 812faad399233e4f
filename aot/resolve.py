"""Resolve: which artifacts of a store serve this model, here. Facts are gathered elsewhere; `judge` is pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from aot.key import Key
from aot.ledger import log
from cache_store.digest import Digest
from cache_store.errors import CodedError, Corrupt, Missing
from cache_store.manifest import Manifest
from cache_store.store import Ref, Store, WritableStore, read_manifest

Facts: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The artifact serves these components: the live path of each, and its path in the artifact; and why it serves no others."""

    components: dict[str, str]
    others: dict[str, Rejected] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The parts that differ: name, what was built, what is here."""

    differences: tuple[tuple[str, str | None, str | None], ...]
    compared: dict[str, str] = field(default_factory=dict)  # by live path, the artifact's component it was compared with

    def about(self, path: str) -> Rejected:
        """What of this concerns the component at `path`: its own parts, and those that all components share (no blank in their name)."""
        named = [difference for difference in self.differences if difference[0] == f"component {path}" or " " not in difference[0]]
        own = [difference for difference in self.differences if difference[0].startswith(f"{path} ")]
        return Rejected((*named, *own), {live: built for live, built in self.compared.items() if live == path})

    def __str__(self) -> str:
        return "; ".join(f"{name}: built for {built}, here {here}" for name, built, here in self.differences)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact of the store and the verdict on it."""

    ref: Ref
    digest: Digest
    manifest: Manifest
    verdict: Accepted | Rejected


def judge(key: Key, *, modules: Mapping[str, Facts], wish: Facts) -> Accepted | Rejected:
    """Whether an artifact of this key serves any of `modules` (facts by live path), compiled as `wish` says."""
    shared = tuple(Key(key.shared()).diff(Key(wish)))
    served: dict[str, str] = {}
    others: dict[str, Rejected] = {}
    for path, facts in modules.items():
        built = _counterpart(key, path, facts)
        if built is None:
            others[path] = Rejected(((f"component {path}", "none of its class", facts["class"]),))
        elif differences := list(Key(key.of_component(built)).diff(Key(facts))):
            others[path] = Rejected(tuple((f"{path} {name}", theirs, here) for name, theirs, here in differences), {path: built})
        else:
            served[path] = built
    if shared or not served:
        compared = {path: built for other in others.values() for path, built in other.compared.items()}
        return Rejected((*shared, *(difference for other in others.values() for difference in other.differences)), compared)
    return Accepted(served, others)


def _counterpart(key: Key, path: str, facts: Facts) -> str | None:
    """The artifact's component for a live module: of the same structure, else of the same path and class, else of the same class."""
    same = [built for built in key.components() if key.of_component(built)["class"] == facts["class"]]
    exact = [built for built in same if key.of_component(built)["fingerprint"] == facts["fingerprint"]]
    return next((built for group in (exact, same) for built in sorted(group, key=lambda name: name != path)), None)


def candidates(store: Store, *, modules: Mapping[str, Facts], wish: Facts) -> list[Candidate]:
    """Every artifact of the store with the verdict on it, newest first. One that cannot be read is quarantined and left out."""
    found = []
    for ref, digest in store.refs():
        try:
            manifest = read_manifest(store, digest)
        except (Corrupt, Missing) as error:
            set_aside(store, error)
        else:
            found.append(Candidate(ref, digest, manifest, judge(Key(manifest.key), modules=modules, wish=wish)))
    return sorted(found, key=lambda candidate: candidate.manifest.created, reverse=True)


def nearest(found: list[Candidate], path: str) -> tuple[Candidate, Rejected] | None:
    """Of the artifacts that do not serve the component at `path`, the one that comes nearest, and the parts that differ.

    One with a component of that class is nearer than any without, then the one with the fewest differing parts.
    """
    rejections = [
        (candidate, verdict.about(path))
        for candidate in found
        if (verdict := candidate.verdict.others.get(path) if isinstance(candidate.verdict, Accepted) else candidate.verdict)
    ]
    return min(rejections, key=lambda pair: (path not in pair[1].compared, len(pair[1].differences)), default=None)


def set_aside(store: Store, error: CodedError) -> None:
    """Go on without what `error` is about, and say so; what proved corrupt is quarantined: it is never a silent miss."""
    if isinstance(error, Corrupt) and isinstance(store, WritableStore):
        store.quarantine(error.culprit)
        log.warning("%s Quarantined. Fix: build it again with `aot build`.", error)
    else:
        log.warning("%s", error)
