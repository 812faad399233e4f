"""Resolve: which artifacts of a store serve this model, here. Facts are gathered elsewhere; `judge` is pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

from aot.artifact.key import Key
from aot.artifact.ledger import log
from aot.cache_store.errors import CodedError, Corrupt, Missing
from aot.cache_store.store import Entry, MendableStore, Store, read_listed
from aot.machine.fit import built_for, is_packaged
from aot.machine.target import Allow, Difference, Target, Weight

_EXPLAINED = 100  # artifacts compared to explain a miss, the newest: a thousand reasons explain nothing

Facts: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The artifact serves these components: the live path of each, and its path in the artifact; and why it serves no others."""

    components: dict[str, str]
    others: dict[str, Rejected] = field(default_factory=dict)
    degraded: tuple[Difference, ...] = ()  # in which machines differ, as the user allowed

    @property
    def needs_canary(self) -> bool:
        """Whether its graphs must be run in another process first."""
        return any(difference.allow is Allow.TORCH for difference in self.degraded)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The parts that differ: name, what was built, what is here."""

    differences: tuple[tuple[str, str | None, str | None], ...]
    compared: dict[str, str] = field(default_factory=dict)  # by live path, the artifact's component it was compared with
    allowable: tuple[Allow, ...] = ()  # what the user may allow, and it would be served

    def about(self, path: str) -> Rejected:
        """What of this concerns the component at `path`: its own parts, and those that all components share (no blank in their name)."""
        named = [difference for difference in self.differences if difference[0] == f"component {path}" or " " not in difference[0]]
        own = [difference for difference in self.differences if difference[0].startswith(f"{path} ")]
        return replace(self, differences=(*named, *own), compared={live: built for live, built in self.compared.items() if live == path})

    def __str__(self) -> str:
        allowed = f" (allow={list(map(str, self.allowable))} would serve it)" if self.allowable else ""
        return "; ".join(f"{name}: built for {built}, here {here}" for name, built, here in self.differences) + allowed


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact as the store lists it, and the verdict on it."""

    entry: Entry
    verdict: Accepted | Rejected


def judge(key: Key, *, modules: Mapping[str, Facts], wish: Facts, allow: Collection[Allow] = ()) -> Accepted | Rejected:
    """Whether an artifact of this key serves any of `modules` (facts by live path), compiled as `wish` says.

    `allow`: the differences between machines that are taken although they degrade.
    """
    found = built_for(key.parts, Target.of_parts(wish))
    degraded = tuple(difference for difference in found if difference.weight is Weight.DEGRADING)
    refused = [difference for difference in found if difference.refused(allow)]
    mode = tuple(entry for entry in Key(key.shared()).diff(Key(wish)) if not entry[0].startswith("target."))
    shared = (*mode, *((f"target.{difference.field}", difference.built, difference.here) for difference in refused))
    served: dict[str, str] = {}
    others: dict[str, Rejected] = {}
    for path, facts in modules.items():
        built = _counterpart(key, path, facts)
        if built is None:
            others[path] = Rejected(((f"component {path}", "none of its class", facts["class"]),))
        elif differences := list(_compared(key.of_component(built)).diff(_compared(facts))):
            others[path] = Rejected(tuple((f"{path} {name}", theirs, here) for name, theirs, here in differences), {path: built})
        else:
            served[path] = built
    if shared or not served:
        compared = served | {path: built for other in others.values() for path, built in other.compared.items()}
        every = (*shared, *(difference for other in others.values() for difference in other.differences))
        only_degraded = bool(refused and served and not mode) and all(difference.allow for difference in refused)
        allowable = tuple(dict.fromkeys(difference.allow for difference in refused if difference.allow)) if only_degraded else ()
        return Rejected(every, compared, allowable)
    return Accepted(served, others, degraded)


def _compared(facts: Facts) -> Key:
    """Without the files of the classes and the state: what of them was traced is compared itself, once the artifact is at hand."""
    return Key({name: value for name, value in facts.items() if name not in ("source", "state")})


def _counterpart(key: Key, path: str, facts: Facts) -> str | None:
    """The artifact's component for a live module: of the same structure, else of the same path and class, else of the same class."""
    same = [built for built in key.components() if key.of_component(built)["class"] == facts["class"]]
    exact = [built for built in same if key.of_component(built)["fingerprint"] == facts["fingerprint"]]
    return next((built for group in (exact, same) for built in sorted(group, key=lambda name: name != path)), None)


def candidates(store: Store, *, modules: Mapping[str, Facts], wish: Facts, allow: Collection[Allow] = ()) -> list[Candidate]:
    """The artifacts of the store that may serve, with the verdict on each; and where not all modules are served, those that come near.

    Judged by what the store lists, which nobody has verified: who loads one judges again by its manifest. In the order in which
    they are to serve: those made for this machine, then those that were tuned, then the newest.
    """
    judged = partial(_judged, store, modules=modules, wish=wish, allow=allow)
    # in a store of thousands, only what was made for this machine is worth a look; all of it where another's may be taken
    within = {} if allow else {name: wish[name] for name in ("target.sku", "target.torch") if name in wish}
    found = judged(store.entries(about=[facts["fingerprint"] for facts in modules.values()], within=within))
    served = {path for candidate in found if isinstance(candidate.verdict, Accepted) for path in candidate.verdict.components}
    if served != set(modules):
        known = {candidate.entry.ref for candidate in found}
        others = sorted(store.entries(newest=_EXPLAINED), key=lambda entry: entry.created, reverse=True)
        found += judged([entry for entry in others[:_EXPLAINED] if entry.ref not in known])
    newest = sorted(found, key=lambda candidate: candidate.entry.created, reverse=True)
    return sorted(newest, key=partial(_goodness, modules=modules, wish=wish))


def _judged(
    store: Store, entries: Iterable[Entry], *, modules: Mapping[str, Facts], wish: Facts, allow: Collection[Allow]
) -> list[Candidate]:
    found = []
    for entry in entries:
        if is_packaged(entry.key):  # others' packages, which tell nothing of a model: `serving.packages` looks at them
            continue
        try:
            key = entry.key or read_listed(store, entry).key
        except (Corrupt, Missing) as error:
            set_aside(store, error)
        else:
            found.append(Candidate(entry, judge(Key(key), modules=modules, wish=wish, allow=allow)))
    return found


def _goodness(candidate: Candidate, *, modules: Mapping[str, Facts], wish: Facts) -> tuple[int, int, bool, bool]:
    """How far it is from this machine, from this model's state and source and release, and from being tuned; the least is the best."""
    if not isinstance(candidate.verdict, Accepted):
        return 0, 0, False, "tuning" in candidate.entry.key
    key, served = Key(candidate.entry.key), candidate.verdict.components.items()
    moved = sum(key.of_component(built).get(part) != modules[path].get(part) for path, built in served for part in ("state", "source"))
    released = key.parts.get("target.diffusers") != wish.get("target.diffusers")
    return len(candidate.verdict.degraded), moved, released, "tuning" in candidate.entry.key


def nearest(found: list[Candidate], path: str) -> list[tuple[Candidate, Rejected]]:
    """Of the artifacts that do not serve the component at `path`, those that come nearest by their keys, and the parts that differ.

    One with a component of that class is nearer than any without, then one of the same architecture, then of the same
    structure: what differs in the machine or the mode is told of the user's own model before what differs in another.
    """
    rejections = [
        (candidate, verdict.about(path))
        for candidate in found
        if (verdict := candidate.verdict.others.get(path) if isinstance(candidate.verdict, Accepted) else candidate.verdict)
    ]
    least = min((_distance(path, rejected) for _, rejected in rejections), default=None)
    return [(candidate, rejected) for candidate, rejected in rejections if _distance(path, rejected) == least]


def _distance(path: str, rejected: Rejected) -> tuple[bool, bool, bool, int]:
    names = {name for name, _, _ in rejected.differences}
    return path not in rejected.compared, f"{path} config" in names, f"{path} fingerprint" in names, len(rejected.differences)


def set_aside(store: Store, error: CodedError) -> None:
    """Go on without what `error` is about, and say so; what proved corrupt is quarantined: it is never a silent miss."""
    if isinstance(error, Corrupt) and error.culprit and isinstance(store, MendableStore):
        store.quarantine(error.culprit)
        log.warning("%s Quarantined. Fix: build it again with `aot build`, or `aot pull` it.", error)
    else:
        log.warning("%s", error)
