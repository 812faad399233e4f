"""Freezing: weights inside the code. One build; everything that must keep it from serving other weights."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import aot
from aot.artifact.certificate import compare
from aot.cache_store.local import LocalStore
from aot.errors import Miss
from aot.model.memory_format import to_channels_last
from aot.model.weights import Frozen, LiveWeights
from tests.pixart import denoise, make_pipe

MODE = {"mode": "freezing"}  # without max-autotune, which tries out what takes minutes


@pytest.fixture
def load(frozen: LocalStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(frozen.root))
    loaded = []

    def compile_pipe(pipe: Any) -> Any:
        loaded.append(pipe)
        return aot.compile_pipe(pipe, options=MODE, on_miss="error", ignores=("vae.decoder",))

    yield compile_pipe
    for pipe in loaded:
        aot.restore(pipe)


def test_the_weights_it_was_built_with_are_served(load: Any) -> None:
    pipe = load(make_pipe(0))
    assert compare(denoise(pipe), denoise(make_pipe(0))).relative_l2 <= 1e-5
    assert sum(aot.stats()[0]["hits"].values()) == 1


def test_other_weights_are_a_miss_that_names_them(load: Any) -> None:
    with pytest.raises(Miss, match="transformer weights: built for sha256"):
        load(make_pipe(1))


def test_weights_written_to_or_replaced_after_loading_are_a_miss_and_the_same_put_back_are_not(load: Any) -> None:
    pipe = load(make_pipe(0))
    linear = pipe.transformer.proj_out
    kept = linear.weight
    linear.weight = torch.nn.Parameter(kept.detach() * 2)
    with pytest.raises(Miss, match="weights were changed"):
        denoise(pipe)
    linear.weight = kept
    denoise(pipe)
    memory, kept.data = kept.data, kept.detach() * 2
    with pytest.raises(Miss, match="weights were changed"):
        denoise(pipe)
    kept.data = memory
    denoise(pipe)
    with torch.no_grad():
        kept.mul_(2)
    with pytest.raises(Miss, match="weights were changed"):
        denoise(pipe)


def test_the_digest_is_of_names_and_bytes_and_not_of_layout_in_memory() -> None:
    one, same, other = (torch.nn.Conv2d(3, 4, 3) for _ in range(3))
    same.load_state_dict(one.state_dict())
    assert LiveWeights(one).digest() == LiveWeights(same).digest() != LiveWeights(other).digest()
    assert LiveWeights(one).digest() != LiveWeights(torch.nn.Sequential(one)).digest()
    to_channels_last(same)
    assert LiveWeights(one).digest() == LiveWeights(same).digest()
    half = torch.nn.Linear(2, 2).bfloat16()
    assert LiveWeights(half).digest() == LiveWeights(half).digest()


def test_tensors_that_torch_does_not_count_writes_of_are_told_by_identity() -> None:
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2)
    frozen = Frozen(module)
    assert frozen.changed() is None
    module.bias = torch.nn.Parameter(module.bias.detach().clone())
    assert "weights were changed" in (frozen.changed() or "")
