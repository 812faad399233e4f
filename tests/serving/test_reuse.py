"""What an artifact whose graphs do not serve is still worth: by key parts alone."""

from __future__ import annotations

import pytest

from aot.artifact.key import Key, component_parts
from aot.cache_store.digest import Digest
from aot.cache_store.store import Entry, Ref
from aot.serving.resolve import Candidate, Rejected
from aot.serving.reuse import Step, grade, reused

FACTS = {"class": "models.Net", "config": "c", "dtype": "bfloat16", "source": "s", "fingerprint": "f", "state": "f"}
GPU = {"device": "cuda", "sku": "H200", "torch": "2.14.1", "triton": "3.8", "cuda": "13.0", "system": "linux", "diffusers": "0.42.1"}
WISH = {"mode": "max-autotune", "memory_format": "preserve", "options": "{}", **{f"target.{name}": value for name, value in GPU.items()}}


def key(**changes: str) -> Key:
    """One that was built for all of that but for the changed parts, `of_` those of its component."""
    own = {name.removeprefix("of_"): value for name, value in changes.items() if name.startswith("of_")}
    shared = {name.replace("__", "."): value for name, value in changes.items() if not name.startswith("of_")}
    return Key({**WISH, "layers": "graph cache", **component_parts("net", {**FACTS, **own}), **shared})


@pytest.mark.parametrize(
    ("changes", "step", "decided"),
    [
        ({"of_fingerprint": "g"}, Step.WARM, "net fingerprint"),
        ({"of_config": "d", "of_fingerprint": "g"}, Step.WARM, "net config"),
        ({"of_fingerprint": "g", "target__diffusers": "0.41.0"}, Step.WARM, "net fingerprint"),  # no part of what a cache is keyed by
        ({"target__torch": "2.14.0"}, Step.TUNED, "target.torch"),
        ({"target__triton": "3.7", "target__torch": "2.13.0"}, Step.COLD, "target.triton"),
        ({"target__sku": "H100"}, Step.COLD, "target.sku"),
        ({"mode": "O2"}, Step.COLD, "mode"),
        ({"layers": "graph"}, Step.COLD, "layers"),
        ({"of_class": "models.Other"}, Step.COLD, "component net"),
    ],
)
def test_the_step_is_the_best_that_the_parts_allow_and_names_what_decided(changes: dict[str, str], step: Step, decided: str) -> None:
    found = grade(key(**changes), "net", FACTS, WISH)
    assert (found.step, found.decided) == (step, decided)


def test_without_a_gpu_nothing_was_timed_that_another_torch_could_use() -> None:
    wish = {**WISH, "target.device": "cpu"}
    assert grade(key(target__device="cpu", target__torch="2.14.0"), "net", FACTS, wish).step is Step.COLD


def candidate(name: str, **changes: str) -> Candidate:
    built = key(**changes)
    measured = {"compile_s": {"net-0.so": 61.2}}
    entry = Entry(Ref(name, built.digest), Digest.of(name.encode()), "2026-01-01T00:00:00Z", 0, dict(built.parts), measured=measured)
    return Candidate(entry, Rejected(()))


def test_a_compilation_begins_from_the_best_and_says_so() -> None:
    found = [candidate("old-torch", target__torch="2.14.0"), candidate("mine", of_fingerprint="g"), candidate("other", mode="O2")]
    (begin,) = reused(found, {"net": FACTS}, WISH)
    assert [one.entry.ref.name for one in begin.candidates] == ["mine"]
    assert str(begin).startswith("net: compiling warm from mine@")
    assert str(begin).endswith("(net fingerprint: built for g, here f; at its build what it holds was compiled in 61 s)")
    (cold,) = reused(found[2:], {"net": FACTS}, WISH)
    assert str(cold) == "net: compiling from nothing (mode: built for O2, here max-autotune)"
    (none,) = reused([], {"net": FACTS}, WISH)
    assert str(none) == "net: compiling from nothing (the store holds no artifact)"
