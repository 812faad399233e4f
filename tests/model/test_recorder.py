"""Any pipeline says itself what it is made of and how it calls it."""

from __future__ import annotations

import json
import threading
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from aot.model.blocks import numbered, repeated
from aot.model.fingerprint import Fingerprint
from aot.model.hollow import fill, hollow
from aot.model.recorder import RecordedCall, Recorder
from aot.model.signature import TensorSpec
from aot.request.merged import merged
from aot.request.record import record
from tests.pipelines import PIPELINES, make

# by pipeline the components that it calls, and how many times each of their signatures comes in two steps
CALLED = {
    "flux": {"transformer": [2], "vae.decoder": [1]},
    "flux-kontext": {"vae.encoder": [1], "transformer": [2], "vae.decoder": [1]},
    "qwen-image": {"transformer": [4], "vae.decoder": [1]},
    "z-image": {"transformer": [2], "vae.decoder": [1]},
    "lumina2": {"transformer": [4], "vae.decoder": [1]},
    "wan": {"transformer": [4], "vae.decoder": [1, 1, 1]},
    "wan22": {"transformer": [2], "transformer_2": [2], "vae.decoder": [1, 1, 1]},
    "wan-i2v": {"image_encoder": [1], "vae.encoder": [1, 1, 1], "transformer": [4], "vae.decoder": [1, 1, 1]},
    "sd15-controlnet": {"controlnet": [2], "unet": [2], "vae.decoder": [1]},
    "animatediff": {"unet": [2], "vae.decoder": [1]},
}


@pytest.mark.parametrize("name", list(CALLED))
@torch.no_grad()
def test_the_components_and_their_calls_are_found_by_watching(name: str) -> None:
    pipe, call = make(name)
    with record(pipe) as found:
        pipe(**call)
    counts: dict[str, list[int]] = {}
    for each in found.calls:
        counts.setdefault(each.component, []).append(each.count)
    assert counts == CALLED[name]
    assert list(found.modules) == list(counts)
    assert not found.left


def test_recording_changes_nothing_and_computes_nothing() -> None:
    pipe, call = make("z-image")
    before, plain = Fingerprint.of(pipe.transformer), nn.Module.__call__
    state = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    with torch.no_grad():
        with record(pipe) as found:
            blank = pipe(**call, output_type="latent")[0]
        assert nn.Module.__call__ is plain
        assert Fingerprint.of(pipe.transformer) == before
        assert all(torch.equal(value, state[name]) for name, value in pipe.transformer.state_dict().items())
        picture = pipe(**{**call, "generator": torch.Generator().manual_seed(0)}, output_type="latent")[0]
    assert torch.isfinite(picture).all()
    assert not torch.equal(picture, blank)
    assert found.name == "z-image"


@torch.no_grad()
def test_watching_a_pipeline_compute_finds_the_same_calls() -> None:
    pipe, call = make("sd15-controlnet")
    with record(pipe) as answered:
        pipe(**call)
    with record(pipe, computes=True) as watched:
        computed = pipe(**{**call, "generator": torch.Generator().manual_seed(0)}, output_type="pt")[0]
    assert watched.calls == answered.calls
    expected = pipe(**{**call, "generator": torch.Generator().manual_seed(0)}, output_type="pt")[0]
    assert torch.equal(computed, expected)


class Odd(nn.Module):
    """Takes an object that no process could compare with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, how: object) -> torch.Tensor:
        return self.linear(x)


def test_a_call_without_an_identity_is_left_alone_and_says_why() -> None:
    module = Odd()
    with record(module) as found, torch.no_grad():
        module(torch.ones(1, 2), how=object())
    assert not found.calls
    assert "object" in found.left["module"]


def test_an_error_of_the_pipeline_comes_through_and_leaves_no_trace() -> None:
    plain = nn.Module.__call__
    pipe, call = make("flux")
    with pytest.raises(ValueError, match="Provide either"), record(pipe):
        pipe(**{**call, "prompt_embeds": None, "prompt": None})
    assert nn.Module.__call__ is plain


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("flux", {"FluxTransformerBlock": 2, "FluxSingleTransformerBlock": 2}),
        ("wan", {"WanTransformerBlock": 2}),
        ("ltx", {"LTXVideoTransformerBlock": 2}),
        ("qwen-image", {"QwenImageTransformerBlock": 2}),
    ],
)
def test_blocks_are_found_without_a_list_of_names(name: str, kinds: dict[str, int]) -> None:
    transformer = make(name)[0].transformer
    found = [type(transformer.get_submodule(path)).__name__ for path in repeated(transformer)]
    assert {kind: found.count(kind) for kind in found if "Block" in kind} == kinds


def test_a_blocks_number_that_nothing_reads_does_not_make_it_another() -> None:
    """Each block of Z-Image keeps which one it is."""
    transformer = make("z-image")[0].transformer
    assert "ZImageTransformerBlock" not in {type(transformer.get_submodule(path)).__name__ for path in repeated(transformer)}
    numbers = numbered(transformer, mentioned={"dim", "head_dim", "modulation"})
    assert "layer_id" in numbers
    blocks = repeated(transformer, unread=["layer_id"])
    assert {type(transformer.get_submodule(path)).__name__ for path in blocks} == {"ZImageTransformerBlock"}
    assert "layer_id" not in numbered(transformer, mentioned={"layer_id"})


def test_every_maker_makes_a_pipeline_of_seeded_weights() -> None:
    assert len(PIPELINES) >= 20
    one, two = (make("sana")[0].transformer.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_hollow_module_has_the_fingerprint_and_ties_of_the_real_one_and_no_weights() -> None:
    module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)])
    module[1].weight = module[0].weight  # type: ignore[union-attr]
    module[2].running_mean.fill_(3.0)  # type: ignore[union-attr, operator]
    found: Any = hollow(module)
    assert all(weight.is_meta for weight in found.parameters())
    assert not any(weight.is_meta for weight in module.parameters())
    made: list[TensorSpec] = []

    def zeros(spec: TensorSpec, _: int) -> torch.Tensor:
        made.append(spec)
        return spec.zeros()

    fill(found, "cpu", zeros)
    assert found[1].weight is found[0].weight
    assert len(made) == 5
    assert float(found[2].running_mean[0]) == 3.0
    assert Fingerprint.of(found) == Fingerprint.of(module)


def test_other_threads_and_other_pipelines_pass_through() -> None:
    ours, theirs = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    recorder = Recorder(ours)
    with recorder.watching(), torch.no_grad():
        x = torch.ones(1, 2)
        assert torch.equal(theirs(x), deepcopy(theirs)(x))
        assert torch.equal(ours(x), torch.zeros(1, 2))
    assert [call.component for call in recorder.calls] == ["module"]


def test_two_pipelines_are_watched_at_once_in_two_threads_and_nothing_is_left_behind() -> None:
    """One leaves while the other is still watched: a patch put back out of order would stay, and watch for ever."""
    plain, began, gone = nn.Module.__call__, threading.Event(), threading.Event()
    first, second = (nn.Sequential(nn.Sequential(nn.Linear(4, 4))) for _ in range(2))
    found = [Recorder(module, computes=True) for module in (first, second)]

    def outlive() -> None:
        with found[1].watching():
            began.set()
            gone.wait()
            second(torch.ones(1, 4))

    thread = threading.Thread(target=outlive)
    with found[0].watching():
        thread.start()
        began.wait()
        first(torch.ones(1, 4))
    gone.set()
    thread.join()
    assert nn.Module.__call__ is plain
    first(torch.ones(2, 4))
    second(torch.ones(2, 4))
    assert [[call.count for call in recorder.calls] for recorder in found] == [[1], [1]]


class _Twice(nn.Module):
    """Calls its part by place, and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(2, 2))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        if float(x.sum()) > 1e9:  # asks for numbers: it is glue
            return x
        return self.part(x) + self.part(input=x) * scale


def test_every_way_in_which_a_call_is_written_is_kept_and_survives_a_file_and_a_merge() -> None:
    pipe = SimpleNamespace(components={"glue": _Twice(), "plain": nn.Sequential(nn.Linear(2, 2))})
    x = torch.ones(1, 2)
    with record(pipe, name="ways") as found, torch.no_grad():
        pipe.components["glue"](x)
        pipe.components["plain"](x)
    with record(pipe, name="ways") as other, torch.no_grad():
        pipe.components["glue"](x=x, scale=1.0)
        pipe.components["plain"](input=x)
    values = [{"name": "ways", "roots": {}, "versions": {}, "components": {}, "left": {}} for _ in range(2)]
    for value, one in zip(values, (found, other), strict=True):
        value["calls"] = json.loads(json.dumps([call.to_json() for call in one.calls]))
    (together,) = merged(values)
    calls = {call.component: call for call in map(RecordedCall.from_json, together["calls"])}
    assert calls["plain"].written == ((1, ()), (0, ("input",)))
    assert calls["glue"].written == ((1, ()), (0, ("x", "scale")))
    assert [block.written for block in calls["glue"].blocks] == [(1, ()), (0, ("input",))]
    old = {**together["calls"][0], "blocks": [block[:2] for block in together["calls"][0]["blocks"]]}
    del old["written"]
    assert RecordedCall.from_json(old).written == ()


class _Glue(nn.Module):
    """Asks a tensor for its numbers, and may be stopped by whoever runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.ran = nn.Sequential(nn.Linear(4, 4)), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if int(x.sum()) > 100:
            self.ran += 1
            raise ValueError("enough")
        return self.inner(x)


@pytest.mark.parametrize("computes", [True, False])
def test_what_glue_raises_is_its_callers_affair_and_it_is_not_run_again(computes: bool) -> None:
    glue = _Glue()
    recorder = Recorder(glue, computes=computes)
    with recorder.watching(), torch.no_grad():
        glue(torch.ones(1, 4))
        with pytest.raises(ValueError, match="enough"):
            glue(torch.full((1, 4), 100.0))
    assert (glue.ran, recorder.left) == (1, {})
