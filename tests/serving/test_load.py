"""A real artifact, loaded into live pipelines."""

import copy
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate.hooks
import pytest
import torch

import aot
from aot.artifact.certificate import compare
from aot.cache_store.local import LocalStore
from aot.cache_store.store import read_manifest
from aot.errors import BadInput, Miss
from tests.conftest import SHAPES
from tests.counts import hits
from tests.pixart import denoise, denoiser_call, image, make_pipe

TOLERANCE = 1e-5


def _misses() -> list[str]:
    return [sentence for ledger in aot.stats() for sentence in ledger["misses"]]


@pytest.fixture
def pipe(cached: LocalStore) -> Any:
    """A pipeline loaded from the artifact; a call that no graph serves is an error."""
    pipe = make_pipe()
    yield aot.compile_pipe(pipe, on_miss="error")
    aot.restore(pipe)
    assert aot.stats() == []


def test_loaded_images_equal_eagers_at_both_sizes_of_one_artifact(pipe: Any) -> None:
    eager = make_pipe()
    for shape in SHAPES:
        assert compare(image(pipe, shape), image(eager, shape)).relative_l2 <= TOLERANCE
    (ledger,) = aot.stats()
    assert all(ledger["hits"].values())
    assert len(ledger["hits"]) == 4
    assert ledger["misses"] == {}
    assert set(ledger["seconds"]) == {"find", "verify", "materialise", "compare", "load"}


def test_other_weights_of_the_architecture_give_their_own_answer(cached: LocalStore) -> None:
    ours, other = denoise(make_pipe(0)), denoise(make_pipe(7))
    assert compare(other, ours).relative_l2 > 0.1
    pipe = aot.compile_pipe(make_pipe(7), on_miss="error")
    assert compare(denoise(pipe), other).relative_l2 <= TOLERANCE
    aot.restore(pipe)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"hidden_states": torch.randn(2, 4, 8, 8).bfloat16()}, "hidden_states.dtype is bfloat16"),
        ({"hidden_states": torch.randn(2, 4, 8, 10)}, "hidden_states.shape is (2, 4, 8, 10)"),
        ({"timestep": torch.tensor([7.0]).expand(2)}, "timestep.dtype is float32"),
        ({"timestep": torch.tensor([7, 7])}, "timestep.stride is (1,), built for (0,)"),
        ({"encoder_attention_mask": None}, "encoder_attention_mask is None"),
        ({"return_dict": True}, "return_dict is True, built for False"),
        (denoiser_call(batch=1), "hidden_states.shape is (1, 4, 8, 8)"),
    ],
)
def test_another_call_never_reaches_a_graph(pipe: Any, change: dict[str, Any], names: str) -> None:
    with pytest.raises(Miss) as caught:
        denoise(pipe, **{**denoiser_call(), **change})
    assert names.split(" is ", maxsplit=1)[0].split(".", maxsplit=1)[0] in caught.value.message
    assert any(names in sentence or "more in the shape book" in sentence for sentence in _misses())
    assert hits() == 0


@pytest.mark.parametrize("lies", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.repeat(1, 1, 2, 2)[:, :, ::2, ::2]])
def test_a_call_whose_tensors_lie_otherwise_in_memory_reaches_it(pipe: Any, lies: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What passes an image on depends on where it came from; a timestep that is built for one of its numbers never takes two."""
    latents = lies(denoiser_call()["hidden_states"])
    assert latents.stride() != denoiser_call()["hidden_states"].stride()
    before = latents.clone()
    call = {**denoiser_call(), "hidden_states": latents}
    expected = denoise(make_pipe(), **call)
    for _ in range(2):
        assert compare(denoise(pipe, **call), expected).relative_l2 <= TOLERANCE
    assert torch.equal(latents, before)
    assert hits() == 2


def test_the_same_call_written_otherwise_reaches_it(pipe: Any) -> None:
    call = denoiser_call()
    expected = denoise(make_pipe())
    with torch.no_grad():
        written = [
            pipe.transformer(call.pop("hidden_states"), **call),
            pipe.transformer(**dict(reversed(denoiser_call().items()))),
            pipe.transformer(**denoiser_call(), cross_attention_kwargs=None),
        ]
    for (found,) in written:
        assert compare(found, expected).relative_l2 <= TOLERANCE


def test_autocast_and_gradients_are_misses(pipe: Any) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(Miss, match="autocast"):
        denoise(pipe)
    with pytest.raises(Miss, match="gradient"):
        pipe.transformer(**denoiser_call())
    pipe.transformer.requires_grad_(False)
    expected = denoise(make_pipe())
    assert compare(pipe.transformer(**denoiser_call())[0], expected).relative_l2 <= TOLERANCE
    with torch.inference_mode():
        assert compare(pipe.transformer(**denoiser_call())[0], expected).relative_l2 <= TOLERANCE


def test_weights_changed_in_place_replaced_or_assigned_are_seen_by_the_next_call(pipe: Any) -> None:
    eager = make_pipe()
    denoise(pipe)
    for change in (_in_place, _replace, _assign_data):
        change(pipe.transformer)
        change(eager.transformer)
        assert compare(denoise(pipe), denoise(eager)).relative_l2 <= TOLERANCE
    assert compare(denoise(pipe), denoise(make_pipe())).relative_l2 > 1e-3


def _in_place(transformer: Any) -> None:
    transformer.proj_out.weight.data.mul_(1.5)


def _replace(transformer: Any) -> None:
    transformer.proj_out.bias = torch.nn.Parameter(torch.full_like(transformer.proj_out.bias, 0.25))


def _assign_data(transformer: Any) -> None:
    weight = transformer.transformer_blocks[0].attn1.to_q.weight
    weight.data = weight.data * 2


def test_weights_of_another_dtype_are_a_miss_that_names_one(pipe: Any) -> None:
    denoise(pipe)
    pipe.transformer.transformer_blocks[1].ff.net[2].to(torch.float64)
    with pytest.raises(Miss, match=r"transformer_blocks\.1\.ff\.net\.2\.weight dtype is float64"):
        denoise(pipe)
    pipe.transformer.float()
    denoise(pipe)


def test_a_submodule_that_was_replaced_is_a_miss_until_it_is_put_back(pipe: Any) -> None:
    expected = denoise(pipe)
    attention = pipe.transformer.transformer_blocks[0].attn1
    plain, attention.to_q = attention.to_q, torch.nn.Sequential(attention.to_q)
    for _ in range(2):
        with pytest.raises(Miss, match="1 submodules were added"):
            denoise(pipe)
    attention.to_q = plain
    assert torch.equal(denoise(pipe), expected)


def test_a_copy_of_the_module_is_served_with_its_own_weights(pipe: Any) -> None:
    twin = copy.deepcopy(pipe.transformer)
    twin.proj_out.weight.data.mul_(3)
    eager = make_pipe()
    eager.transformer.proj_out.weight.data.mul_(3)
    with torch.no_grad():
        assert compare(twin(**denoiser_call())[0], denoise(eager)).relative_l2 <= TOLERANCE
    assert compare(denoise(pipe), denoise(make_pipe())).relative_l2 <= TOLERANCE


def test_config_dtype_saving_and_restoring_go_on_working(pipe: Any, tmp_path: Path) -> None:
    import inspect

    assert pipe.transformer.config.num_layers == 2
    assert pipe.transformer.dtype == torch.float32
    assert "added_cond_kwargs" in inspect.signature(pipe.transformer.forward).parameters
    pipe.save_pretrained(tmp_path / "saved")
    again = type(pipe.transformer).from_pretrained(tmp_path / "saved" / "transformer")
    assert torch.equal(again.proj_out.weight, pipe.transformer.proj_out.weight)
    aot.restore(pipe)
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(denoise(pipe), denoise(make_pipe()))


class _Counting(accelerate.hooks.ModelHook):  # type: ignore[misc]
    """What accelerate's offloading is made of: something that must run before every forward."""

    calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.calls += 1
        return args, kwargs


@pytest.mark.parametrize("order", ["hook first", "hook after"])
def test_offloading_hooks_go_on_running_before_a_loaded_forward(cached: LocalStore, order: str) -> None:
    pipe, hook = make_pipe(), _Counting()
    if order == "hook first":
        accelerate.hooks.add_hook_to_module(pipe.transformer, hook)
    aot.compile_pipe(pipe, on_miss="error")
    if order == "hook after":
        accelerate.hooks.add_hook_to_module(pipe.transformer, hook)
    expected = denoise(make_pipe())
    assert compare(denoise(pipe), expected).relative_l2 <= TOLERANCE
    assert (hook.calls, hits()) == (1, 1)
    aot.restore(pipe)
    assert torch.equal(denoise(pipe), expected)
    assert hook.calls == 2
    accelerate.hooks.remove_hook_from_module(pipe.transformer)
    assert torch.equal(denoise(pipe), expected)


def test_one_module_loads_by_itself(cached: LocalStore) -> None:
    pipe = make_pipe()
    assert aot.compile(pipe.transformer, options='{"mode": "O2"}', on_miss="error") is pipe.transformer
    assert compare(denoise(pipe), denoise(make_pipe())).relative_l2 <= TOLERANCE
    assert hits() == 1
    aot.restore(pipe.transformer)


def test_a_process_that_loads_imports_nothing_of_inductor_and_leaves_nothing_behind(cached: LocalStore, tmp_path: Path) -> None:
    program = """
import sys, tests.pixart as p, aot
pipe = p.make_pipe()
aot.compile_pipe  # imports the API; diffusers itself has imported Inductor's configuration by now
before = set(sys.modules)
aot.compile_pipe(pipe, on_miss="error")
p.denoise(pipe)
new = [name for name in set(sys.modules) - before if name.startswith(("torch._inductor", "torch._dynamo"))]
print(sum(aot.stats()[0]["hits"].values()), new)
"""
    (tmp_path / "tmp").mkdir()
    environ = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PATH": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, cwd=Path(__file__).parents[2])
    assert done.stdout.split(maxsplit=1) == ["1", "[]\n"], done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_without_the_variable_no_artifact_is_read(cached: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "0")
    pipe = aot.compile_pipe(make_pipe())
    (ledger,) = aot.stats()
    assert ledger["artifacts"] == []
    aot.restore(pipe)


def test_the_variable_may_hold_a_stores_path(cached: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", "/nonexistent")
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(cached.root))
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    assert len(aot.stats()[0]["artifacts"]) == 1
    aot.restore(pipe)


def test_another_mode_is_a_miss_that_says_so(cached: LocalStore, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "aot"):
        pipe = aot.compile_pipe(make_pipe(), options={"mode": "O3"}, on_miss="eager")
        denoise(pipe)
    assert "mode: built for max-optimize:max-autotune:cache-all, here max-optimize:max-autotune:low-precision:cache-all" in caplog.text
    assert [record.name for record in caplog.records].count("aot") == 2  # whoever imports torchao first hears of its enums too
    aot.restore(pipe)


def test_another_model_is_a_miss_whose_parts_are_named(cached: LocalStore) -> None:
    pipe = make_pipe()
    pipe.transformer.proj_out = torch.nn.Linear(24, 32, bias=False)
    with pytest.raises(Miss, match=r"transformer fingerprint: .*\(proj_out has .*, built for .*bias"):
        aot.compile_pipe(pipe, on_miss="error")
    aot.restore(pipe)


@pytest.mark.parametrize(
    ("location", "code"), [("hf://bucket", "AOT-E201"), ("nosuch://bucket", "AOT-E201"), ("/proc/nowhere", "AOT-E204")]
)
def test_a_store_that_cannot_be_opened_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, location: str, code: str
) -> None:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", location)
    with caplog.at_level(logging.WARNING, "aot"):
        pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
        denoise(pipe)
    assert code in caplog.text
    aot.restore(pipe)


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_damage_is_quarantined_and_costs_a_warning(cached: LocalStore, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    expected = denoise(make_pipe())
    for path in (cached.root / "v1" / kind).iterdir():
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "aot"):
        pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
        assert torch.equal(denoise(pipe), expected)
    assert "AOT-E203" in caplog.text
    assert list(cached.refs()) == []
    assert any((cached.root / "v1" / "quarantine").iterdir())
    aot.restore(pipe)


@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("kind", ["blobs", "manifests", "signatures", "refs/pixart-alpha"])
def test_what_is_no_file_is_damage_said_once(
    cached: LocalStore, caplog: pytest.LogCaptureFixture, kind: str, put: Callable[[Path], None]
) -> None:
    """A directory was an exception out of compile_pipe, and a FIFO kept it for ever."""
    expected = denoise(make_pipe())
    for path in (cached.root / "v1" / kind).iterdir():
        path.unlink()
        put(path)
    for said in (1, 0):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "aot"):
            pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
            assert torch.equal(denoise(pipe), expected)
        assert caplog.text.count("not a regular file. Quarantined") == said
        aot.restore(pipe)


def test_a_miss_compiles_warm_from_the_cache_layer(cached: LocalStore, tmp_path: Path) -> None:
    """The graph layer is damaged: torch.compile serves the call, and every one of its kernels comes from the cache layer."""
    ((_, digest),) = cached.refs()
    layer = read_manifest(cached, digest).layer("graph")
    assert layer is not None
    path = cached.root / "v1" / "blobs" / layer.digest.hex
    path.chmod(0o600)
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    program = """
import json, tests.pixart as p, aot
from aot.artifact.certificate import compare
from torch._dynamo.utils import counters
pipe = p.make_pipe()
expected = p.denoise(pipe)
aot.compile_pipe(pipe, ignores=("vae.decoder",))
error = compare(p.denoise(pipe), expected).relative_l2
print(json.dumps({"error": error, "inductor": counters["inductor"], "autograd": counters["aot_autograd"]}))
"""
    environ = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads() + 1)}  # not the builder's: it must not matter
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, cwd=Path(__file__).parents[2])
    assert "AOT-E203" in done.stderr
    said = json.loads(done.stdout)
    assert said["error"] <= TOLERANCE
    assert said["inductor"].get("fxgraph_cache_miss", 0) == 0
    assert said["inductor"].get("fxgraph_cache_hit", 0) + said["autograd"].get("autograd_cache_hit", 0) > 0


def test_a_model_that_has_become_another_compiles_warm_from_what_is_left_of_it(cached: LocalStore) -> None:
    """Its graphs are not for it; what they were compiled from is the same but for an attribute that computes nothing."""
    program = """
import json, logging, tests.pixart as p, aot
from torch._dynamo.utils import counters
logging.basicConfig(level=logging.INFO)
pipe = p.make_pipe()
pipe.transformer.remark = 5
aot.compile_pipe(pipe, ignores=("vae.decoder",))
p.denoise(pipe)
print(json.dumps(counters["inductor"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "transformer: compiling warm from pixart-alpha@" in done.stderr
    assert "(transformer fingerprint: built for" in done.stderr
    said = json.loads(done.stdout)
    assert said.get("fxgraph_cache_hit", 0) > 0
    assert said.get("fxgraph_cache_miss", 0) == 0


def test_bad_arguments_name_the_field() -> None:
    pipe = make_pipe()
    with pytest.raises(BadInput, match="on_miss"):
        aot.compile_pipe(pipe, on_miss="explode")
    with pytest.raises(BadInput, match="mode word"):
        aot.compile(pipe.transformer, options={"mode": "O4"})
    with pytest.raises(BadInput, match="backend"):
        aot.compile(pipe.transformer, backend="oneflow")
    with pytest.raises(BadInput, match="SimpleNamespace"):
        from types import SimpleNamespace

        aot.compile_pipe(SimpleNamespace())
