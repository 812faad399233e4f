"""Estimate: what compiling will take, by what it took in an earlier build."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean

from aot.cache_store.store import Entry, Store

_SAME = ("recipe", "variant", "target.device")
_LIKE = ("scope", "dynamic", "target.arch", "mode", "target.torch")  # the first count most
_LOOKED_AT = 50  # the newest artifacts


def expected_seconds(store: Store, parts: Mapping[str, str]) -> dict[str, float]:
    """By component, the mean seconds a graph of it took in the build that was most like one of these key parts.

    Empty where the store holds no artifact of that recipe and variant.
    """
    alike = [entry for entry in store.entries(newest=_LOOKED_AT) if all(entry.key.get(name) == parts.get(name) for name in _SAME)]
    if not alike:
        return {}
    best = max(alike, key=lambda entry: ([entry.key.get(name) == parts.get(name) for name in _LIKE], entry.created))
    return _by_component(best)


def _by_component(entry: Entry) -> dict[str, float]:
    taken = defaultdict[str, list[float]](list)
    for file, seconds in entry.measured.get("compile_s", {}).items():
        taken[file.rpartition("-")[0]].append(seconds)
    return {component: mean(found) for component, found in taken.items()}
