"""Reuse: what an artifact whose graphs do not serve is still worth. Pure functions over key parts.

The steps, and what of an artifact each takes: its graphs; else its cache layer, where the compiler that looks into it is the same one
(its entries are keyed by what is compiled: a wrong guess is a miss of the cache, never a wrong result; diffusers' version is no part
of them); else what autotuning chose, which holds for the same triton and GPU; else nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from aot.artifact.key import Key
from aot.serving.resolve import Candidate, Facts

_KEPT = 3  # cache layers that are unpacked: those further down hold hardly anything that these do not


class Step(IntEnum):
    """The way to serve where no graph does, the best last."""

    COLD = 0
    TUNED = 1
    WARM = 2


_SAID = {
    Step.COLD: "compiling from nothing",
    Step.TUNED: "compiling, with what autotuning chose in",
    Step.WARM: "compiling warm from",
}
# the parts that each step needs equal, the first that differs being what decides
_TUNED = ("target.device", "target.sku", "target.triton", "target.cuda", "mode", "options")
_WARM = (*_TUNED, "target.torch", "target.system", "memory_format")


@dataclass(frozen=True, slots=True)
class Grade:
    """What one artifact is worth to the component `path`, and the part of its key that keeps it from more."""

    step: Step
    decided: str
    built: str = ""
    here: str = ""

    def __str__(self) -> str:
        return f"{self.decided}: built for {self.built or 'none'}, here {self.here or 'none'}"


def grade(key: Key, path: str, facts: Facts, wish: Facts) -> Grade:
    """What an artifact of this key is worth to a component of these `facts`, compiled as `wish` says, whose graphs do not serve it."""
    of_class = [key.of_component(built) for built in key.components() if key.of_component(built)["class"] == facts["class"]]
    if not of_class:
        return Grade(Step.COLD, f"component {path}", "none of its class", facts["class"])
    if "cache" not in key.parts.get("layers", "").split():
        return Grade(Step.COLD, "layers", key.parts.get("layers", ""), "graph cache")

    def first(names: Iterable[str]) -> Grade | None:
        differs = next((name for name in names if key.parts.get(name, "") != wish.get(name, "")), None)
        return Grade(Step.COLD, differs, key.parts.get(differs, ""), wish.get(differs, "")) if differs else None

    if not (why := first(_WARM)):
        part = min(({name for name in facts if built.get(name) != facts[name]} for built in of_class), key=len)
        name = next((name for name in ("config", "dtype", "fingerprint", "state", "source") if name in part), "code")
        return Grade(Step.WARM, f"{path} {name}", of_class[0].get(name, ""), facts.get(name, ""))
    if not first(_TUNED) and wish.get("target.device") == "cuda":
        return replace(why, step=Step.TUNED)
    return why


@dataclass(frozen=True, slots=True)
class Reused:
    """What a compilation of the component `path` begins from: the artifacts whose cache layer is unpacked, and a sentence."""

    path: str
    step: Step
    candidates: tuple[Candidate, ...]
    why: str

    def __str__(self) -> str:
        names = ", ".join(f"{one.entry.ref.name}@{one.entry.ref.key.short}" for one in self.candidates)
        took = sum(self._seconds())
        cost = f"; at its build what it holds was compiled in {took:.0f} s" if took else ""
        return f"{self.path}: {_SAID[self.step]}{' ' * bool(names)}{names} ({self.why}{cost})"

    def _seconds(self) -> Iterator[float]:
        """What compiling the component's graphs took at the build of the best."""
        for candidate in self.candidates[:1]:
            for file, seconds in candidate.entry.measured.get("compile_s", {}).items():
                if file.rpartition("-")[0] == self.path:
                    yield float(seconds)


def reused(found: Collection[Candidate], modules: Mapping[str, Facts], wish: Facts) -> list[Reused]:
    """For each component that no graph serves, what of the artifacts `found` its compilation begins from."""
    return [_reused(found, path, facts, wish) for path, facts in modules.items()]


def _reused(found: Collection[Candidate], path: str, facts: Facts, wish: Facts) -> Reused:
    graded = [(candidate, grade(Key(candidate.entry.key), path, facts, wish)) for candidate in found if candidate.entry.key]
    best = sorted(graded, key=lambda pair: pair[1].step, reverse=True)  # of one step the newest, which is found first
    if not best:
        return Reused(path, Step.COLD, (), "the store holds no artifact")
    step = best[0][1].step
    kept = tuple(candidate for candidate, one in best if one.step is step)[:_KEPT] if step else ()
    return Reused(path, step, kept, str(best[0][1]))
