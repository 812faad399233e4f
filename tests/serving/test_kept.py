"""What users do around a loaded model goes on working: pickling, exporting, wrapping, interrupting, forgetting to restore."""

import copy
import gc
import logging
import os
import pickle
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import aot
from aot.artifact.certificate import compare
from aot.cache_store.local import LocalStore
from aot.errors import Miss
from aot.machine import settings
from aot.model.fingerprint import Fingerprint
from tests.counts import hits
from tests.pixart import denoise, denoiser_call, make_pipe

TOLERANCE = 1e-5


@pytest.fixture
def pipe(cached: LocalStore) -> Any:
    """A pipeline loaded from the artifact; what no graph serves is eager."""
    pipe = make_pipe()
    yield aot.compile_pipe(pipe, on_miss="eager")
    aot.restore(pipe)
    assert aot.stats() == []


def test_a_loaded_model_is_pickled_as_the_eager_one(pipe: Any, tmp_path: Path) -> None:
    torch.save(pipe.transformer, tmp_path / "model.pt")
    for again in (pickle.loads(pickle.dumps(pipe.transformer)), torch.load(tmp_path / "model.pt", weights_only=False)):
        with torch.no_grad():
            assert torch.equal(again(**denoiser_call())[0], denoise(make_pipe()))
        assert Fingerprint.of(again).differs(Fingerprint.of(make_pipe().transformer)) is None
    assert hits() == 0
    denoise(pipe)
    assert hits() == 1


def test_a_loaded_model_is_exported_and_compiled_as_the_eager_one(pipe: Any) -> None:
    expected = denoise(make_pipe())
    with torch.no_grad():
        program = torch.export.export(pipe.transformer, (), denoiser_call(), strict=False)
        assert compare(program.module()(**denoiser_call())[0], expected).relative_l2 <= TOLERANCE
        compiled = torch.compile(pipe.transformer, backend="eager", fullgraph=True)
        assert compare(compiled(**denoiser_call())[0], expected).relative_l2 <= TOLERANCE


def _at(model: Any, call: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: model(**{**call, "hidden_states": value})[0]


ONES = torch.ones(2, 4, 8, 8)
TRANSFORMED: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "vmap": lambda model, call: torch.vmap(_at(model, call), randomness="same")(torch.stack([ONES, ONES * 2])),
    "jvp": lambda model, call: torch.func.jvp(_at(model, call), (ONES,), (ONES,))[1],
    "grad": lambda model, call: torch.func.grad(lambda value: _at(model, call)(value).sum())(ONES),
    "make_fx": lambda model, call: torch.fx.experimental.proxy_tensor.make_fx(_at(model, call))(ONES)(ONES * 2),
    "functional_call": lambda model, call: torch.func.functional_call(
        model, {name: weight * 1.1 for name, weight in model.named_parameters()}, (), call
    )[0],
}


@pytest.mark.parametrize("what", TRANSFORMED)
def test_transforms_of_a_loaded_model_give_what_they_give_of_the_eager_one(pipe: Any, what: str) -> None:
    def outcome(model: Any) -> Any:
        try:
            with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the one with derivatives
                return TRANSFORMED[what](model, denoiser_call())
        except RuntimeError as error:
            return type(error)

    expected, got = outcome(make_pipe().transformer), outcome(pipe.transformer)
    assert got is expected if isinstance(expected, type) else compare(got, expected).relative_l2 <= TOLERANCE


def test_fake_tensors_go_through_a_loaded_model_as_through_the_eager_one(pipe: Any) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        call = {name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for name, value in denoiser_call().items()}
        assert pipe.transformer(**call)[0].shape == denoise(make_pipe()).shape
    with torch.no_grad():
        assert pipe.transformer(**call)[0].shape == denoise(make_pipe()).shape  # outside of the mode, the inputs alone


@pytest.mark.parametrize("freed", [0, 64])
def test_a_weight_without_its_memory_is_a_miss_that_names_it(pipe: Any, freed: int) -> None:
    aot.compile_pipe(pipe, on_miss="error")
    expected = denoise(pipe)
    weight = pipe.transformer.proj_out.weight
    before = weight.detach().clone()
    weight.data = before.clone()  # the pipeline's own memory cannot be resized
    weight.untyped_storage().resize_(freed)
    with pytest.raises(Miss, match=r"proj_out\.weight has memory for"):
        denoise(pipe)
    weight.data = before
    assert torch.equal(denoise(pipe), expected)


def test_an_environment_that_is_set_for_the_loading_alone_weakens_no_check(cached: LocalStore) -> None:
    location = os.environ.pop("NEXFORT_GRAPH_CACHE")
    with mock.patch.dict(os.environ, {"NEXFORT_GRAPH_CACHE": location}):
        pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    weight = pipe.transformer.transformer_blocks[0].attn1.to_q.weight
    weight.data = weight.data.t()
    with pytest.raises(Miss, match=r"to_q\.weight stride is \(1, 24\), built for \(24, 1\)"):
        denoise(pipe)
    weight.data = torch.zeros(1)
    with pytest.raises(Miss, match=r"to_q\.weight shape is"):
        denoise(pipe)
    aot.restore(pipe)


def test_what_was_wrapped_around_a_loaded_forward_stays_when_it_is_restored(pipe: Any) -> None:
    model, seen = pipe.transformer, []
    served = model.forward

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return served(*args, **kwargs)

    model.forward = wrapper
    denoise(pipe)
    assert (hits(), len(seen)) == (1, 1)
    aot.restore(pipe)
    assert torch.equal(denoise(pipe), denoise(make_pipe()))
    assert len(seen) == 2


def test_a_wrapper_of_before_is_kept_and_is_a_miss_that_names_it(cached: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    pipe, seen = make_pipe(), []
    plain = pipe.transformer.forward

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return plain(*args, **kwargs)

    pipe.transformer.forward = wrapper
    aot.compile_pipe(pipe, on_miss="eager")
    assert "the module has forward=" in caplog.text
    assert torch.equal(denoise(pipe), denoise(make_pipe()))
    aot.restore(pipe)
    denoise(pipe)
    assert len(seen) == 2
    assert pipe.transformer.forward is wrapper


def test_restoring_a_fused_model_gives_the_very_structure_and_flags_back(cached: LocalStore) -> None:
    pipe = make_pipe()
    before, expected = Fingerprint.of(pipe.transformer), denoise(pipe)
    aot.compile_pipe(pipe, fuse_qkv_projections=True, on_miss="eager")
    aot.restore(pipe)
    assert before.differs(Fingerprint.of(pipe.transformer)) is None
    assert not any(child.training for child in pipe.transformer.modules())
    pipe.transformer.eval()
    aot.compile_pipe(pipe, on_miss="error")
    assert compare(denoise(pipe), expected).relative_l2 <= TOLERANCE
    assert hits() == 1
    aot.restore(pipe)


@pytest.mark.parametrize("where", ["aot.serving.load.open_graphs", "aot.serving.found.candidates", "aot.serving.dispatch.Dispatcher.seal"])
def test_an_interrupt_while_loading_leaves_nothing(cached: LocalStore, where: str) -> None:
    pipe = make_pipe()
    before = [dict(vars(child)) for child in pipe.transformer.modules()]
    with mock.patch(where, side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        aot.compile_pipe(pipe, on_miss="eager")
    assert [dict(vars(child)) for child in pipe.transformer.modules()] == before
    assert (aot.stats(), settings._process.claims) == ([], [])


def test_a_pipeline_that_is_deleted_gives_back_what_it_held(cached: LocalStore) -> None:
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    denoise(pipe)
    assert settings._process.claims
    del pipe
    gc.collect()
    assert (aot.stats(), settings._process.claims) == ([], [])


def test_one_part_of_a_pipeline_that_is_gone_leaves_the_others_served(cached: LocalStore) -> None:
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    pipe.vae = None
    gc.collect()
    denoise(pipe)
    assert hits() == 1
    aot.restore(pipe)
    assert (aot.stats(), settings._process.claims) == ([], [])


def test_a_copy_of_a_model_that_fell_back_computes_with_its_own_weights(
    cached: LocalStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.ERROR, logger="aot")
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "0")
    with mock.patch("aot.serving.nexfort.jit", lambda forward, options: torch.compile(forward, backend="eager")):
        model = aot.compile(make_pipe().transformer)
        twin = copy.deepcopy(model)
        twin.proj_out.weight.data.mul_(3)
        with torch.no_grad():
            ours, theirs = model(**denoiser_call())[0], twin(**denoiser_call())[0]
    aot.restore(model)
    aot.restore(twin)
    with torch.no_grad():
        assert compare(theirs, twin(**denoiser_call())[0]).relative_l2 <= TOLERANCE
    assert compare(theirs, ours).relative_l2 > 0.1


def test_loading_again_and_again_opens_each_library_once(cached: LocalStore) -> None:
    def maps() -> int:
        return sum("aot-run-" in line and "r-xp" in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = maps()
    for _ in range(3):
        pipe = aot.compile_pipe(make_pipe(), on_miss="error")
        denoise(pipe)
        aot.restore(pipe)
    assert maps() - before <= 4


def _a_hook(model: Any, _: ExitStack) -> None:
    model.transformer_blocks[0].ff.register_forward_hook(lambda _, __, out: out * 2)


def _a_class(model: Any, stack: ExitStack) -> None:
    kind = type(model.transformer_blocks[0].ff)
    plain = kind.forward
    stack.enter_context(mock.patch.object(kind, "forward", lambda self, *args, **kwargs: plain(self, *args, **kwargs) * 2))


def _an_attribute(model: Any, _: ExitStack) -> None:
    model.transformer_blocks[0].norm1.eps = 0.5


@pytest.mark.parametrize("change", [_a_hook, _a_class, _an_attribute])
def test_what_is_compiled_for_a_model_that_changed_is_of_that_very_model(
    cached: LocalStore, change: Callable[[Any, ExitStack], None]
) -> None:
    def by_eager(function: Callable[..., Any], _: Any) -> Callable[..., Any]:
        return torch.compile(function, backend="eager", dynamic=False)

    with mock.patch("aot.serving.jit.jit", by_eager), ExitStack() as stack:
        pipe, eager = aot.compile_pipe(make_pipe(), on_miss="compile"), make_pipe()
        pipe.transformer.transformer_blocks[1].ff.seen = 1  # compiled once, for another reason
        assert compare(denoise(pipe), denoise(eager)).relative_l2 <= TOLERANCE
        change(pipe.transformer, stack)
        if change is not _a_class:
            change(eager.transformer, stack)
        assert compare(denoise(pipe), denoise(eager)).relative_l2 <= TOLERANCE
        assert compare(denoise(eager), denoise(make_pipe())).relative_l2 > 1e-3 or change is _a_class
        aot.restore(pipe)
    assert hits() == 0
