"""A served model that became another one: its answer is eager's of that very model, or a miss that says what changed."""

import copy
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import aot
from aot.artifact.certificate import compare
from tests import mutations
from tests.counts import hits
from tests.mutations import TABLE, Call, Mutation

EXACT = 1e-4  # relative L2; a served call's own is 2e-6


@dataclass(frozen=True)
class Answer:
    """What a call came to: what it returned or raised, how many graphs ran, the misses said, how often hooks looked."""

    given: Any
    hits: int = 0
    misses: tuple[str, ...] = ()
    looked: int = 0


def verdict(expected: Answer, got: Answer) -> str:
    """`served`, `miss`, `both raise`; all else begins with `WRONG` or `RAISED`."""
    if isinstance(expected.given, Exception):
        return "both raise" if type(got.given) is type(expected.given) else f"WRONG: eager raises {expected.given!r}, got {got.given!r}"
    if isinstance(got.given, Exception):
        return f"RAISED {got.given!r}"
    error = compare(_plain(got.given), _plain(expected.given)).relative_l2
    if not error <= EXACT or got.looked != expected.looked:
        return f"WRONG by {error:.1e}, hooks looked {got.looked} times of {expected.looked}"
    if got.hits:
        return "served"
    return "miss" if got.misses else "WRONG: neither served nor a miss"


def _plain(returned: Any) -> torch.Tensor:
    while isinstance(returned, tuple | list):
        returned = returned[0]
    tensor: torch.Tensor = returned
    return tensor.detach().as_subclass(torch.Tensor).resolve_neg().float()


def answer(model: nn.Module, call: Call, mutation: Mutation, *, when: str, loaded: bool) -> Answer:
    """What a copy of `model` answers that was changed before or after it was loaded; or was not loaded."""
    module = copy.deepcopy(model)
    with ExitStack() as stack:
        if loaded:
            stack.callback(aot.restore, module)
        if when == "before":
            mutation.apply(module, stack)
        if loaded:
            aot.compile(module, on_miss="eager")
        if when == "after":
            with torch.no_grad():
                module(**call)
            mutation.apply(module, stack)
        before = hits()
        mutations.LOOKED.clear()
        torch.manual_seed(1)
        try:
            with torch.no_grad(), mutation.around(module):
                given = module(**mutation.call(call))
        except Exception as error:  # noqa: BLE001 - whatever it raises, eager has to raise too
            given = error
        misses = tuple(aot.stats()[-1]["misses"]) if loaded else ()
        return Answer(given, hits() - before, misses, len(mutations.LOOKED))


Subject = tuple[nn.Module, Call]


@pytest.fixture(scope="module")
def subject(artifacts: Callable[[str], Any]) -> Callable[[str], Subject]:
    """A model of each kind and a call of it that its artifact serves."""
    from tests.subjects import SHARED

    made: dict[str, Subject] = {}

    def of(name: str) -> Subject:
        recipe, make = SHARED[name]
        store, _ = artifacts(recipe)
        os.environ["NEXFORT_GRAPH_CACHE"] = str(store.root)
        if name not in made:
            made[name] = make()
        return made[name]

    return of


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "0")  # put back afterwards


# each row on two models, by turns; `scripts/mutations.py` runs every row on every model, whole and regional
MODELS = ("unet", "transformer", "video", "decoder")
CELLS = [(MODELS[(place + step) % 4], what) for place, what in enumerate(TABLE) for step in (0, 1)]
CELLS += [(name, "nothing") for name in MODELS if (name, "nothing") not in CELLS]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("name", "what"), CELLS)
def test_what_was_done_to_a_model_is_served_exactly_or_is_a_miss(
    subject: Callable[[str], Subject], name: str, what: str, when: str
) -> None:
    model, call = subject(name)
    try:
        expected = answer(model, call, TABLE[what], when=when, loaded=False)
    except (StopIteration, IndexError):
        pytest.skip("this model has no such part")
    got = answer(model, call, TABLE[what], when=when, loaded=True)
    said = verdict(expected, got)
    assert not said.startswith(("WRONG", "RAISED")), (said, got.misses)
    if what == "nothing":
        assert said == "served"
