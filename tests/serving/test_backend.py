"""`torch.compile(model, backend="aot")`: the artifact's graph where it is what Dynamo has traced, else what `on_miss` says, never another
answer than eager's."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import aot
from aot.artifact.certificate import compare
from aot.cache_store.local import LocalStore
from tests.conftest import Regional
from tests.pixart import denoise, denoiser_call, make_pipe

EAGER = {"on_miss": "eager"}


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    gc.collect()


def _compiled(pipe: Any, **options: Any) -> Any:
    pipe.transformer = torch.compile(pipe.transformer, backend="aot", dynamic=False, options={**EAGER, **options})
    return pipe


def _hits() -> int:
    return sum(sum(ledger["hits"].values()) for ledger in aot.stats())


def _misses() -> str:
    return " ".join(sentence for ledger in aot.stats() for sentence in ledger["misses"])


def test_the_door_is_one_of_torchs_own() -> None:
    assert "aot" in torch.compiler.list_backends()


def test_graphs_of_an_artifact_serve_what_dynamo_traced_and_nothing_is_traced_twice(cached: LocalStore) -> None:
    assert cached
    plain, pipe = make_pipe(), _compiled(make_pipe(), on_miss="error")
    sizes = [denoiser_call(8, 8), denoiser_call(8, 12)]
    for call in sizes:
        assert compare(denoise(pipe, **call), denoise(plain, **call)).relative_l2 <= 1e-5
    traced = counters["stats"]["unique_graphs"]
    assert traced == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (2, 3):
            for call in (denoiser_call(8, 8, seed=seed), denoiser_call(8, 12, seed=seed)):
                assert compare(denoise(pipe, **call), denoise(plain, **call)).relative_l2 <= 1e-5
    assert (_hits(), _misses()) == (6, "")
    assert counters["stats"]["unique_graphs"] == traced
    assert not counters["inductor"]


def test_another_models_weights_are_its_own(cached: LocalStore) -> None:
    assert cached
    pipes = [_compiled(make_pipe(seed), on_miss="error") for seed in (0, 7)]
    answers = [denoise(pipe) for pipe in pipes]
    for seed, answer in zip((0, 7), answers, strict=True):
        assert compare(answer, denoise(make_pipe(seed))).relative_l2 <= 1e-5
    assert compare(*answers).relative_l2 > 0.1


def test_repeated_blocks_of_diffusers_are_served(regional: Regional, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(regional[0]))
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    plain, pipe = make_pipe(), make_pipe()
    monkeypatch.setattr(type(pipe.transformer), "_repeated_blocks", ["BasicTransformerBlock"])
    pipe.transformer.compile_repeated_blocks(backend="aot", options={"on_miss": "error"})
    for seed in (1, 2):
        call = denoiser_call(seed=seed)
        assert compare(denoise(pipe, **call), denoise(plain, **call)).relative_l2 <= 1e-5
    assert _hits() == 2 * len(pipe.transformer.transformer_blocks)


def _eps(model: Any) -> None:
    model.transformer_blocks[0].norm1.eps = 0.5


def _hook(model: Any) -> None:
    model.transformer_blocks[0].ff.register_forward_hook(lambda _, __, output: 2 * output)


def _code(model: Any) -> None:
    inner = model.transformer_blocks[0].ff
    inner.forward = lambda x, *args, **kwargs: 3 * type(inner).forward(inner, x, *args, **kwargs)


@pytest.mark.parametrize("change", [_eps, _hook, _code])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_that_has_become_another_is_answered_as_it_is(cached: LocalStore, change: Callable[[Any], None], when: str) -> None:
    assert cached
    plain, pipe = make_pipe(), make_pipe()
    model = pipe.transformer
    before = denoise(plain)
    if when == "before":
        change(model)
    _compiled(pipe)
    if when == "after":
        assert compare(denoise(pipe), before).relative_l2 <= 1e-5
        assert _hits() == 1
        change(model)
    change(plain.transformer)
    served = _hits()
    assert compare(denoise(pipe), denoise(plain)).relative_l2 <= 1e-5
    assert compare(denoise(plain), before).relative_l2 > 1e-3
    assert _hits() == served


class Broken(nn.Module):
    """Around a denoiser: its own forward is traced in pieces."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **call: Any) -> Any:
        torch._dynamo.graph_break()
        return (2 * self.inner(**call)[0],)


def test_what_is_traced_in_pieces_is_none_of_its_graphs(cached: LocalStore) -> None:
    assert cached
    plain, pipe = make_pipe(), make_pipe()
    pipe.transformer = torch.compile(Broken(pipe.transformer), backend="aot", dynamic=False, options=EAGER)
    assert compare(denoise(pipe), 2 * denoise(plain)).relative_l2 <= 1e-5


def test_a_size_that_no_graph_has_is_a_miss_that_names_it(cached: LocalStore) -> None:
    assert cached
    plain, pipe = make_pipe(), _compiled(make_pipe())
    call = denoiser_call(12, 12)
    assert compare(denoise(pipe, **call), denoise(plain, **call)).relative_l2 <= 1e-5
    assert "hidden_states.shape is (2, 4, 12, 12)" in _misses()
    assert _hits() == 0


def test_open_sizes_are_told_apart_at_each_call(cached: LocalStore) -> None:
    """Traced once for all sizes: each goes to its own graph, or is a miss."""
    assert cached
    plain, pipe = make_pipe(), make_pipe()
    pipe.transformer = torch.compile(pipe.transformer, backend="aot", options=EAGER)
    for width in (8, 12, 16, 8, 12):
        call = denoiser_call(8, width)
        assert compare(denoise(pipe, **call), denoise(plain, **call)).relative_l2 <= 1e-5


def test_a_gradient_is_eagers(cached: LocalStore) -> None:
    assert cached
    plain, pipe = make_pipe(), make_pipe()
    grads = []
    for model in (plain.transformer, torch.compile(pipe.transformer, backend="aot", dynamic=False, options=EAGER)):
        call = denoiser_call()
        call["hidden_states"].requires_grad_()
        model(**call)[0].square().sum().backward()
        grads.append(call["hidden_states"].grad)
    assert compare(*grads).relative_l2 <= 1e-5
    assert _hits() == 0


def test_what_is_around_a_call_is_looked_at(cached: LocalStore) -> None:
    assert cached
    plain, pipe = make_pipe(), _compiled(make_pipe())
    denoise(pipe)
    with torch.autocast("cpu", torch.bfloat16):
        assert compare(denoise(pipe).float(), denoise(plain).float()).relative_l2 <= 1e-2
    assert _hits() == 1
    with torch.inference_mode():
        assert compare(denoise(pipe), denoise(plain)).relative_l2 <= 1e-5


def test_an_artifact_that_nobody_vouches_for_is_not_loaded(cached: LocalStore) -> None:
    for keys in (cached.root / "keys").iterdir():
        keys.unlink()
    plain, pipe = make_pipe(), _compiled(make_pipe())
    assert compare(denoise(pipe), denoise(plain)).relative_l2 <= 1e-5
    assert "AOT-E207" in _misses()
    assert _hits() == 0


def test_on_miss_error_is_a_miss_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path))
    pipe = _compiled(make_pipe(), on_miss="error")
    with pytest.raises(Exception, match="NEXFORT_GRAPH_CACHE is not set"):
        denoise(pipe)
    torch.compiler.reset()
    with pytest.raises(Exception, match="on_miss 'sometimes' is unknown"):
        denoise(_compiled(make_pipe(), on_miss="sometimes"))


def test_copies_are_served_with_their_own_weights(cached: LocalStore) -> None:
    assert cached
    pipe = make_pipe()
    model = pipe.transformer
    _compiled(pipe, on_miss="error")
    denoise(pipe)
    other = make_pipe()
    other.transformer = copy.deepcopy(model)
    with torch.no_grad():
        other.transformer.proj_out.weight.mul_(3)
    expected = denoise(other)
    assert compare(denoise(_compiled(other, on_miss="error")), expected).relative_l2 <= 1e-5
