"""`torch.compile(backend="aot")`: an artifact's graph in the place of what Dynamo traced, or eager's numbers and why."""

import copy
import logging
import pickle
import shutil
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
from aot.errors import BadInput, Miss
from aot.serving.loaded import _loaded
from aot.serving.substitute import matched
from tests.conftest import Regional
from tests.counts import hits
from tests.pixart import denoise, denoiser_call, make_pipe

TOLERANCE = 1e-5
WIDE = denoiser_call(8, 12)
EAGER = {"on_miss": "eager"}


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    _loaded.clear()
    yield
    torch._dynamo.reset()


def _misses() -> str:
    return " ".join(sentence for ledger in aot.stats() for sentence in ledger["misses"])


def _is_eagers(pipe: Any, call: dict[str, Any] | None = None, *, eager: Any = None) -> None:
    call = call or denoiser_call()
    assert compare(denoise(pipe, **call), denoise(eager or make_pipe(), **call)).relative_l2 <= TOLERANCE


def _compiled(seed: int = 0, **options: Any) -> Any:
    pipe = make_pipe(seed)
    pipe.transformer.compile(backend="aot", options={**EAGER, **options})
    return pipe


def test_both_sizes_of_an_artifact_are_served_and_nothing_compiles_again(cached: LocalStore) -> None:
    pipe = make_pipe()
    pipe.transformer = torch.compile(pipe.transformer, backend="aot", options={"on_miss": "error"})
    for call in (denoiser_call(), WIDE):
        _is_eagers(pipe, call)
    with torch.compiler.set_stance("fail_on_recompile"):
        for call in (denoiser_call(seed=2), WIDE, denoiser_call(seed=3)):
            _is_eagers(pipe, call)
    assert (hits(), _misses(), counters["stats"]["unique_graphs"]) == (5, "", 2)
    assert not counters["inductor"]
    (ledger,) = aot.stats()
    assert ledger["served"]["PixArtTransformer2DModel"]


def test_sizes_that_one_trace_leaves_open_are_each_served_by_their_own_graph_or_missed(cached: LocalStore) -> None:
    pipe, wider = _compiled(), denoiser_call(8, 16)
    for call in (denoiser_call(), WIDE):  # Dynamo leaves the width open at the second
        _is_eagers(pipe, call)
    with torch.compiler.set_stance("fail_on_recompile"):
        for call in (wider, WIDE, denoiser_call(), wider):
            _is_eagers(pipe, call)
    assert (hits(), counters["stats"]["unique_graphs"]) == (4, 2)
    assert "hidden_states.shape is (2, 4, 8, 16)" in _misses()


def test_another_model_of_the_class_and_a_copy_give_their_own_answers_by_the_same_trace(cached: LocalStore) -> None:
    pipe, other, twin = _compiled(), _compiled(7), _compiled()
    _is_eagers(pipe)
    with torch.compiler.set_stance("fail_on_recompile"):
        _is_eagers(other, eager=make_pipe(7))
        assert compare(denoise(other), denoise(pipe)).relative_l2 > 0.1
        twin.transformer = copy.deepcopy(pipe.transformer)
        twin.transformer.compile(backend="aot", options=EAGER)
        twin.transformer.proj_out.weight.data.mul_(3)
        eager = make_pipe()
        eager.transformer.proj_out.weight.data.mul_(3)
        _is_eagers(twin, eager=eager)
    assert hits() == 5
    again = pickle.loads(pickle.dumps(pipe.transformer))
    assert torch.equal(again.proj_out.weight, pipe.transformer.proj_out.weight)


def _epsilon(transformer: Any) -> None:
    transformer.transformer_blocks[1].norm2.eps = 0.5


def _hook(transformer: Any) -> None:
    transformer.transformer_blocks[1].attn1.register_forward_hook(lambda module, given, returned: returned * 2)


def _class_attribute(transformer: Any) -> None:
    kind = type(transformer.transformer_blocks[1].ff)

    class Doubled(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs) * 2

    transformer.transformer_blocks[1].ff.__class__ = Doubled


def _unread(transformer: Any) -> None:
    transformer.transformer_blocks[1].ff.note = 2.0


def _training(transformer: Any) -> None:
    transformer.train()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("change", "said"),
    [(_epsilon, "eps=0.5"), (_hook, "forward hook"), (_class_attribute, "Doubled"), (_unread, "note=2.0"), (_training, "training=True")],
)
def test_a_model_that_is_another_is_a_miss_that_says_what_changed(
    cached: LocalStore, change: Callable[[Any], None], said: str, when: str
) -> None:
    pipe, eager = _compiled(), make_pipe()
    if when == "after":
        _is_eagers(pipe)
    before = hits()
    for one in (pipe, eager):
        change(one.transformer)
    for _ in range(2):
        _is_eagers(pipe, eager=eager)
    assert hits() == before
    assert said in _misses()


def test_a_hook_that_comes_and_goes_is_obeyed(cached: LocalStore) -> None:
    pipe, eager = _compiled(), make_pipe()
    for _ in range(2):
        handles = [one.transformer.proj_out.register_forward_hook(lambda module, given, returned: returned * 3) for one in (pipe, eager)]
        _is_eagers(pipe, eager=eager)
        assert hits() % 2 == 0
        for handle in handles:
            handle.remove()
        for _ in range(2):
            _is_eagers(pipe)
    assert hits() == 4


def test_an_unknown_size_and_a_gradient_are_misses(cached: LocalStore) -> None:
    pipe, eager = _compiled(), make_pipe()
    for call in (denoiser_call(10, 8), denoiser_call(10, 14), denoiser_call()):
        _is_eagers(pipe, call)
    assert hits() == 1  # by the trace whose sizes are open
    found, expected = (one.transformer(**denoiser_call())[0] for one in (pipe, eager))
    assert compare(found, expected).relative_l2 <= TOLERANCE
    for output in (found, expected):
        output.sum().backward()
    ours, theirs = (one.transformer.proj_out.weight.grad for one in (pipe, eager))
    assert compare(ours, theirs).relative_l2 <= TOLERANCE
    assert hits() == 1
    assert "a gradient is asked for" in _misses()


def test_what_no_graph_serves_is_compiled_by_inductor(cached: LocalStore) -> None:
    pipe = make_pipe()
    pipe.transformer.transformer_blocks[0].ff.compile(backend="aot")
    _is_eagers(pipe)
    assert counters["inductor"]
    assert "FeedForward: its artifact has no graph of its own for it; compiling (on_miss=compile)" in _misses()


def test_a_forward_that_is_traced_in_pieces_is_a_miss(cached: LocalStore) -> None:
    pipe, gelu = _compiled(), torch.nn.functional.gelu
    torch._dynamo.disallow_in_graph(gelu)
    try:
        for _ in range(2):
            _is_eagers(pipe)
    finally:
        torch._dynamo.trace_rules._disallowed_callable_ids.remove(id(gelu))
    assert hits() == 0
    assert "PixArtTransformer2DModel: its forward is traced in pieces, the first ends at" in _misses()


class Halved(nn.Module):
    """A part of no artifact, whose forward breaks in two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 2
        torch._dynamo.graph_break()
        return x / 4


def test_what_is_no_modules_whole_forward_is_said_and_computed(cached: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="aot"):
        assert torch.equal(torch.compile(Halved(), backend="aot", options=EAGER)(torch.ones(3)), torch.full((3,), 0.5))
        assert torch.equal(torch.compile(lambda x: x + 1, backend="aot", options=EAGER)(torch.ones(3)), torch.full((3,), 2.0))
    assert "Halved: no artifact for it" in _misses()
    assert "and no module's forward from its beginning" in caplog.text


def test_an_artifact_that_nobody_vouches_for_is_not_loaded(cached: LocalStore) -> None:
    shutil.rmtree(cached.root / "keys")
    pipe = _compiled()
    _is_eagers(pipe)
    assert hits() == 0
    assert "PixArtTransformer2DModel: AOT-E207" in _misses()


def test_without_a_store_no_artifact_is_read(cached: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "0")
    pipe, named = _compiled(), _compiled(store=str(cached.root))
    _is_eagers(pipe)
    assert (hits(), "NEXFORT_GRAPH_CACHE is not set" in _misses()) == (0, True)
    torch._dynamo.reset()
    _is_eagers(named)
    assert hits() == 1


def test_what_is_asked_is_understood_or_refused(cached: LocalStore) -> None:
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"hidden_states\.shape is") as caught:
        denoise(_compiled(on_miss="error"), **denoiser_call(10, 10))
    assert isinstance(caught.value.inner_exception, Miss)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="on_mis") as caught:
        denoise(_compiled(on_mis="error"))
    assert isinstance(caught.value.inner_exception, BadInput)


def test_repeated_blocks_are_served_by_the_graphs_of_their_component(
    regional: Regional, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(regional[0], tmp_path / "home")
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    pipe = make_pipe()
    monkeypatch.setattr(type(pipe.transformer), "_repeated_blocks", ["BasicTransformerBlock"])
    pipe.transformer.compile_repeated_blocks(backend="aot", options=EAGER)
    _is_eagers(pipe)
    with torch.compiler.set_stance("fail_on_recompile"):
        _is_eagers(pipe, denoiser_call(seed=4))
    assert (hits(), _misses()) == (4, "")
    pipe.transformer.transformer_blocks[1].attn1.scale = 1.0
    eager = make_pipe()
    eager.transformer.transformer_blocks[1].attn1.scale = 1.0
    _is_eagers(pipe, eager=eager)
    assert hits() == 5
    assert "attn1" in _misses()


def test_results_are_told_apart_by_their_numbers_and_their_memory() -> None:
    a, b, given = torch.randn(3, 4), torch.randn(3, 4), [torch.randn(2, 6)]

    def found(expected: Any, results: list[torch.Tensor]) -> Any:
        return matched(expected, results, given, allowed=TOLERANCE)

    assert found((b, a), [a.clone(), b.clone()]) == (1, 0)
    assert found((b,), [a.clone(), b.clone()]) == (1,)
    assert "relative L2" in found((a,), [a + 1e-3])
    assert "relative L2" in found((a,), [torch.full_like(a, torch.nan)])
    assert "none is of its form" in found((a,), [a.double()])
    assert "none is of its form" in found((a,), [a.t().contiguous().t()])
    assert "cannot be told" in found((a,), [a.clone(), a.clone()])
    assert "returns a int" in found((3,), [a])
    assert "share memory" in found((given[0][:, :3],), [given[0][:, :3]])
    both = torch.randn(2, 6)
    assert found((both[:, :2], both[:, 2:]), [both[:, :2], both[:, 2:]]) == (0, 1)
    assert "share memory" in found((both[:, :4], both[:, 2:]), [both[:, :4], both[:, 2:]])
