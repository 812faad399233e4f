"""Attention backends of diffusers: part of the key, carried from the record to the build, noticed wherever they change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend

import aot
from aot.artifact.certificate import compare
from aot.building.build import Built
from aot.errors import BadInput, Unsupported
from aot.model.attention import active, backends, enter, lowered
from aot.request.record import Record
from tests.building.test_pipeline import O0
from tests.pipelines import make

MATH, PART = "_native_math", "component/transformer/attention"


def picture(pipe: Any, call: dict[str, Any]) -> Any:
    with torch.no_grad():
        return pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "pt"})[0]


@contextmanager
def _variable(name: str) -> Iterator[None]:
    """As DIFFUSERS_ATTN_BACKEND leaves the process when diffusers is imported."""
    before = _AttentionBackendRegistry._active_backend
    _AttentionBackendRegistry._active_backend = AttentionBackendName(name)
    try:
        yield
    finally:
        _AttentionBackendRegistry._active_backend = before


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    with _variable(_AttentionBackendRegistry._active_backend):
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Built]]:
    """One artifact for each of two backends, by the backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AOT_HOME", str(tmp_path_factory.mktemp("attention")))
        patch.setenv("NEXFORT_GRAPH_CACHE", "1")
        found = {}
        for name in ("native", MATH):
            pipe, call = make("flux")
            with attention_backend(name):
                found[name] = aot.build(
                    pipe, lambda pipe, call=call: picture(pipe, call), gpu="cpu", components=("transformer",), options=O0
                )
        yield found


@pytest.mark.compiles
def test_each_backend_has_an_artifact_of_its_own(built: dict[str, Built]) -> None:
    assert built["native"].ref.key != built[MATH].ref.key
    assert PART not in built["native"].manifest.key
    assert built[MATH].manifest.key[PART] == MATH
    code = [{name: value for name, value in one.manifest.key.items() if name != PART} for one in built.values()]
    assert code[0] == code[1]


def _hits() -> int:
    """Of the graphs with attention inside, by what those are called with."""
    return sum(times for call, times in aot.stats()[-1]["hits"].items() if "float32[1,96,32]" in call)


def _by_method(pipe: Any) -> None:
    pipe.transformer.set_attention_backend(MATH)
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)  # the model's own choice alone


@pytest.mark.compiles
@pytest.mark.parametrize("asked", ["native", MATH])
@pytest.mark.parametrize("around", [attention_backend, _variable])
def test_what_was_built_under_a_backend_is_served_under_it_alone(built: dict[str, Built], asked: str, around: Callable[..., Any]) -> None:
    plain, call = make("flux")
    pipe, _ = make("flux")
    other = MATH if asked == "native" else "native"
    with around(asked):
        expected = picture(plain, call)
        aot.compile_pipe(pipe, ignores=("vae.decoder",), on_miss="eager", options=O0)
        assert aot.stats()[-1]["artifacts"] == [str(built[asked].digest)]
        assert compare(picture(pipe, call), expected).relative_l2 <= 1e-5
        hits = _hits()
        assert (hits > 0, aot.stats()[-1]["misses"]) == (True, {})
        with around(other):  # after it was loaded
            assert compare(picture(pipe, call), picture(plain, call)).relative_l2 <= 1e-5
        assert _hits() == hits
        assert any(MATH.upper() in sentence for sentence in aot.stats()[-1]["misses"])
        assert compare(picture(pipe, call), expected).relative_l2 <= 1e-5
        assert _hits() == 2 * hits
    aot.restore(pipe)


@pytest.mark.compiles
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.usefixtures("built")
def test_a_models_own_choice_is_noticed(when: str) -> None:
    plain, call = make("flux")
    pipe, _ = make("flux")
    _by_method(plain)
    if when == "before":
        _by_method(pipe)
    aot.compile_pipe(pipe, ignores=("vae.decoder",), on_miss="eager", options=O0)
    _by_method(pipe)
    assert compare(picture(pipe, call), picture(plain, call)).relative_l2 <= 1e-5
    assert _hits() == 0
    assert aot.stats()[-1]["misses"]
    aot.restore(pipe)


def test_a_record_keeps_the_backend_that_was_active(tmp_path: Path) -> None:
    pipe, call = make("flux")
    with attention_backend(MATH), aot.record(pipe) as record:
        picture(pipe, call)
    record.save(tmp_path / "record.json")
    saved = json.loads((tmp_path / "record.json").read_text())
    assert saved["attention"] == [MATH]
    assert Record.load(tmp_path / "record.json").attention == (MATH,)
    with aot.record(pipe) as record:
        picture(pipe, call)
    record.save(tmp_path / "plain.json")
    assert "attention" not in json.loads((tmp_path / "plain.json").read_text())
    assert Record.load(tmp_path / "plain.json").attention == ("native",)


def test_calls_under_several_backends_are_no_one_record() -> None:
    pipe, call = make("flux")
    with aot.record(pipe) as record:
        picture(pipe, call)
        with attention_backend(MATH):
            picture(pipe, call)
    with pytest.raises(BadInput, match=f"several attention backends: {MATH}, native"):
        record.check()


def test_a_strangers_record_fetches_no_kernels() -> None:
    with pytest.raises(Unsupported, match="sage_hub, whose kernels are fetched from the Hub and run"):
        enter(("sage_hub",), own=False)
    with pytest.raises(BadInput, match="attention backend 'nativ' is unknown"):
        enter(("nativ",), own=False)
    enter((MATH,), own=False)
    assert active() == MATH


def test_a_compilation_has_one_of_torchs_kernels() -> None:
    pipe, _ = make("flux")
    with lowered(pipe.transformer):
        assert torch.backends.cuda.flash_sdp_enabled()
    pipe.transformer.transformer_blocks[0].attn.processor._attention_backend = AttentionBackendName._NATIVE_MATH
    with lowered(pipe.transformer.transformer_blocks[0]):
        assert torch.backends.cuda.math_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(Unsupported, match="by several of torch's kernels"), lowered(pipe.transformer):
        pass


def test_a_model_goes_to_its_own_backend_and_else_to_the_active_one() -> None:
    pipe, _ = make("flux")
    assert backends(pipe.transformer) == ("native",)
    assert backends(pipe.vae) == ()
    with attention_backend(MATH):
        assert backends(pipe.transformer) == (MATH,)
        pipe.transformer.transformer_blocks[0].attn.processor._attention_backend = AttentionBackendName.NATIVE
        assert backends(pipe.transformer) == (MATH, "native")
