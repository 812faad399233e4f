"""Every recipe: built at its tiny row, loaded into a pipeline with other weights, served, compared with eager."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import aot
from aot.artifact.certificate import compare
from aot.building.build import build
from aot.building.recorded import make_plan
from aot.cache_store.local import LocalStore
from aot.errors import Miss
from aot.model.blocks import share
from aot.model.capture import component
from aot.model.ip_adapter import adapters
from aot.recipes import RECIPES, find
from aot.request.example import Example
from aot.request.shape import Shape
from tests.conftest import ARTIFACTS, Artifact, request_for
from tests.shared import quiet

TOLERANCE = 1e-5


def make(name: str, *, seed: int = 5, components: tuple[str, ...] = (), dtype: str = "float32") -> Any:
    """The tiny pipeline of a recipe, with the weights of a seed."""
    recipe = find(name)
    torch.manual_seed(seed)
    return recipe.pipeline(recipe.variant("tiny"), dtype=dtype, weights=None, components=components)


def serve(pipe: Any, name: str, shape: Shape | None = None, *, guided: bool = True, batch: int = 1) -> torch.Tensor:
    """One request: the images or video it gives, from two denoising steps."""
    recipe, row = find(name), find(name).variant("tiny")
    example = Example(shape or row.shape, batch, guided, row.frames)
    with torch.no_grad():
        returned = pipe(**recipe.call(pipe, example, 2, 0))
    found: torch.Tensor = returned[0]
    return found


def _compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    return int(counters["stats"]["unique_graphs"])


@pytest.fixture
def load(artifacts: Callable[[str], Artifact], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Loads a recipe's artifact into a pipeline; a call that no graph serves is an error, and nothing may be compiled."""
    loaded, before = [], _compiled()

    def compile_pipe(name: str, pipe: Any, **options: Any) -> Any:
        monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(artifacts(name)[0].root))
        ignores = () if "vae.decoder" in {*(ARTIFACTS[name].get("components") or ["vae.decoder"])} else ("vae.decoder",)
        loaded.append(pipe)
        return aot.compile_pipe(pipe, on_miss="error", ignores=ignores, **options)

    yield compile_pipe
    for pipe in loaded:
        aot.restore(pipe)
    assert _compiled() == before


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_builds_loads_and_serves_other_weights_as_eager_does(name: str, load: Callable[..., Any], artifacts: Any) -> None:
    certificate = artifacts(name)[1].manifest.certificate
    assert all(0 <= call["relative_l2"] <= TOLERANCE for call in certificate["calls"])
    pipe, components = make(name), ARTIFACTS[name].get("components", ())
    if any("encoder" in path for path in components):  # with an encoder the pipeline is given words or pixels
        pipe = make(name, components=components)
    expected = serve(pipe, name)
    load(name, pipe)
    assert compare(serve(pipe, name), expected).relative_l2 <= TOLERANCE
    (ledger,) = aot.stats()
    assert ledger["misses"] == {}
    for path in components or ("vae.decoder",):
        assert any(call.startswith(path) and hits for call, hits in ledger["hits"].items()), path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latte", "sd3", "sdxl"])
def test_the_decoders_that_are_not_built_above_serve_as_eager_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for(recipe=name, **{**ARTIFACTS[name], "components": ("vae.decoder",)}, cache_layer=False)
    build(request, LocalStore(tmp_path / "home"), progress=quiet, environ=os.environ)
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(tmp_path / "home"))
    pipe = make(name)
    expected = serve(pipe, name)
    aot.compile_pipe(pipe, on_miss="error", ignores=("transformer", "unet"))
    assert compare(serve(pipe, name), expected).relative_l2 <= TOLERANCE
    aot.restore(pipe)


def test_sizes_between_those_that_were_built_are_served_without_a_compile(load: Callable[..., Any]) -> None:
    """nexfort's own test of recompiles; its own list is `scripts/resolutions.py`'s. A square, a wide one, and a rare one."""
    pipe, eager = make("sdxl"), make("sdxl")
    load("sdxl", pipe)
    for shape in (Shape(128, 128), Shape(256, 512), Shape(72, 200), Shape(104, 328)):
        assert compare(serve(pipe, "sdxl", shape), serve(eager, "sdxl", shape)).relative_l2 <= TOLERANCE, shape
    (ledger,) = aot.stats()
    assert ledger["misses"] == {}


def test_a_size_outside_the_range_is_a_miss_that_says_the_range(load: Callable[..., Any]) -> None:
    pipe = load("sdxl", make("sdxl"))
    with pytest.raises(Miss, match=r"sample\.shape\[2\] is 96, built for 8 to 80"):
        serve(pipe, "sdxl", Shape(768, 64))
    with pytest.raises(Miss, match=r"sample\.shape is \(1, 4, 8, 8\)"):
        serve(pipe, "sdxl", guided=False)


def test_the_scale_of_an_ip_adapter_stays_live(load: Callable[..., Any]) -> None:
    """Floats, zero, a tensor changed in place, one scale a layer: all in one run, each as eager has it, without a compile."""
    name = "sdxl-ip-adapter"
    pipe, eager = make(name), make(name)
    load(name, pipe)
    tensor = torch.tensor(0.25)
    for scale in (1.0, 0.5, 0.0, 0.1, tensor, {"down": 0.3, "mid": 0.8}):
        pipe.set_ip_adapter_scale(scale)
        if scale is tensor:
            tensor.copy_(0.7)
        eager.set_ip_adapter_scale(0.7 if scale is tensor else scale)
        assert compare(serve(pipe, name), serve(eager, name)).relative_l2 <= TOLERANCE, scale
    assert aot.stats()[0]["misses"] == {}
    for made in (pipe, eager):
        for processor in adapters(made.unet):
            processor.scale = [0.3]  # past diffusers' own method
    with contextlib.suppress(Miss):  # a miss by name, or what eager makes of it
        assert compare(serve(pipe, name), serve(eager, name)).relative_l2 <= TOLERANCE


def test_a_fused_lora_is_served_by_the_same_artifact_and_one_beside_the_weights_is_not(
    load: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    plain, eager = serve(make("sdxl"), "sdxl"), _with_lora(make("sdxl"))
    expected = serve(eager, "sdxl")
    assert compare(expected, plain).relative_l2 > 1e-3
    fused = _with_lora(make("sdxl"))
    fused.fuse_lora()
    fused.unload_lora_weights()
    load("sdxl", fused)
    assert compare(serve(fused, "sdxl"), expected).relative_l2 <= TOLERANCE
    with caplog.at_level(logging.WARNING, logger="aot"), pytest.raises(Miss, match="fuse_lora"):
        load("sdxl", _with_lora(make("sdxl")))


def _with_lora(pipe: Any) -> Any:
    from peft import LoraConfig

    generator = torch.Generator().manual_seed(11)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v"]), adapter_name="style")
    for parameter_name, weight in pipe.unet.named_parameters():
        if "lora_B" in parameter_name:  # made zero, as before training
            weight.data = torch.randn(weight.shape, generator=generator) * 0.5
    return pipe


@pytest.mark.parametrize(("name", "frames"), [("sd3", ()), ("latte", (1, 4))])
def test_batch_guidance_and_frames_are_signatures_of_their_own(name: str, frames: tuple[int, ...]) -> None:
    request = request_for(recipe=name, shapes=(Shape(64, 64),), batches=(1, 2), guidance="both", frames=frames)
    request.check(find(name))
    denoiser = [call.signature.specs[0].shape for call in make_plan(find(name), request).calls if call.component == "transformer"]
    batches = [1, 2, 4]
    if frames:
        assert sorted(denoiser) == sorted((batch, 4, length, 8, 8) for batch in batches for length in frames)
    else:
        assert sorted(denoiser) == [(batch, 16, 8, 8) for batch in batches]


def test_what_is_decoded_in_float32_after_float16_is_compiled_in_float32() -> None:
    """SDXL's pipeline raises its VAE to float32 for the time of decoding."""
    request = request_for(recipe="sdxl", shapes=(Shape(64, 64),), dtype="float16")
    plan = make_plan(find("sdxl"), request)
    assert {unit.component: unit.dtype for unit in plan.units} == {"unet": torch.float16, "vae.decoder": torch.float32}
    assert next(plan.modules["vae.decoder"].parameters()).dtype == torch.float16


@pytest.mark.parametrize("name", list(RECIPES))
def test_regional_scope_finds_the_repeated_blocks_of_every_recipe(name: str) -> None:
    recipe = find(name)
    request = request_for(recipe=name, shapes=(recipe.variant("tiny").shape,), scope="regional")
    plan, denoiser = make_plan(recipe, request), recipe.components[0].path
    blocks = {path for unit in plan.units if unit.component == denoiser for path in unit.paths}
    assert share(plan.modules[denoiser], sorted(blocks - {""})) >= 0.5


def test_sizes_around_the_one_that_is_named_are_multiples_and_say_what_varies() -> None:
    assert [*map(str, find("sdxl").around(Shape(1024, 1024)))] == ["1024x1024", "2048x512", "512x2048", "1536x1024"]
    assert [*map(str, find("pixart-alpha").around(Shape(64, 80)))] == ["64x80", "128x80", "64x160", "96x80"]
    for name in RECIPES:
        for shape in find(name).around(Shape(272, 400)):
            shape.check(find(name).divisor)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.fuse_qkv])
def test_fused_projections_change_no_answer_with_an_adapter_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from aot.model.fusion import fuse_qkv, split_qkv

    pipe = make(name)
    denoiser = component(pipe, find(name).components[0].path)
    expected = serve(pipe, name)
    assert fuse_qkv(denoiser)
    assert compare(serve(pipe, name), expected).relative_l2 <= TOLERANCE
    split_qkv(denoiser)
    assert compare(serve(pipe, name), expected).relative_l2 <= TOLERANCE


@pytest.mark.parametrize("name", list(RECIPES))
def test_real_weights_of_a_folder_make_the_same_model_as_the_variant(name: str, tmp_path: Path) -> None:
    recipe, row = find(name), find(name).variant("tiny")
    pipe = make(name)
    if name == "sdxl-ip-adapter":
        _save_adapter(pipe, tmp_path / "sdxl_models")
        pipe.unload_ip_adapter()
    pipe.save_pretrained(tmp_path)
    loaded = recipe.pipeline(row, dtype="bfloat16", weights=str(tmp_path))
    assert loaded.vae.dtype == torch.bfloat16
    request = request_for(recipe=name, shapes=(row.shape,))
    ours, theirs = make_plan(recipe, replace(request, weights=str(tmp_path))), make_plan(recipe, request)
    assert {part for part, _, _ in ours.key.diff(theirs.key)} == {"variant"}


def _save_adapter(pipe: Any, folder: Path) -> None:
    """The IP-Adapter's weights under the names that h94/IP-Adapter has them by."""
    (projection,) = pipe.unet.encoder_hid_proj.image_projection_layers
    weights = {"proj.weight": projection.image_embeds.weight, "proj.bias": projection.image_embeds.bias}
    weights |= {"norm.weight": projection.norm.weight, "norm.bias": projection.norm.bias}
    processors = [processor for processor in pipe.unet.attn_processors.values() if hasattr(processor, "to_k_ip")]
    pairs = {f"{2 * n + 1}.{part}": getattr(p, part)[0].weight for n, p in enumerate(processors) for part in ("to_k_ip", "to_v_ip")}
    folder.mkdir()
    torch.save(
        {"image_proj": weights, "ip_adapter": {f"{key}.weight": value for key, value in pairs.items()}}, folder / "ip-adapter_sdxl.bin"
    )


def test_every_config_says_where_it_is_from() -> None:
    folder = Path(__file__).parents[2] / "recipes" / "configs"
    sources = json.loads((folder / "SOURCES.json").read_text())
    assert {path.stem for path in folder.glob("*.json")} - {"SOURCES"} == set(sources)
    assert all(entry["status"] and entry["source"] for entry in sources.values())
