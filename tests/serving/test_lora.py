"""Adapters are loaded, weighted, disabled, swapped and taken away after loading: the same graphs serve, and nothing compiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as Adapted
from safetensors.torch import save_file

import aot
from aot.artifact.certificate import compare
from aot.errors import BadInput, Miss
from aot.model.slots import targets
from tests.pipelines import make
from tests.shared import Shared

RANK = 32
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v")
O0 = {"options": {"inductor.aot_inductor.compile_wrapper_opt_level": "O0"}}


def picture(pipe: Any, call: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "latent"})[0]
    return found


def lora(module: torch.nn.Module, rank: int, targets: tuple[str, ...] = ATTENTION, *, seed: int = 0, **config: Any) -> dict[str, Any]:
    """The state of an adapter as diffusers' own training scripts save it, of noise."""
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets), **config), adapter_name="made")  # type: ignore[operator]
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(module, adapter_name="made"))
    module.delete_adapters(["made"])  # type: ignore[operator]
    module.unload_lora()  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) / value.shape[-1] ** 0.5 for name, value in state.items()}


@pytest.fixture(scope="module")
def home(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patched:

        def build(folder: Path) -> str:
            patched.setenv("AOT_HOME", str(folder))
            pipe, call = make("flux")
            aot.build(pipe, lambda pipe: pipe(**call), gpu="cpu", options=O0, components=("transformer",), lora_rank=RANK)
            return str(folder)

        yield Path(shared.once("lora-flux", build))


class Pair:
    """A pipeline that is served, and one that is eager, to which the same is done."""

    def __init__(self) -> None:
        (self.served, self.call), (self.eager, _) = make("flux"), make("flux")
        aot.compile(self.served.transformer, options=O0, on_miss="error")

    def do(self, what: Callable[[Any], object]) -> None:
        what(self.eager)
        what(self.served)

    def same(self) -> bool:
        """Whether both make the same picture, without a miss."""
        return compare(picture(self.served, self.call), picture(self.eager, self.call)).relative_l2 <= 2e-6


@pytest.fixture
def pair(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    monkeypatch.setenv("AOT_HOME", str(home))
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    pair = Pair()
    yield pair
    aot.restore(pair.served.transformer)


def load(state: dict[str, Any], name: str) -> Callable[[Any], object]:
    return lambda pipe: pipe.load_lora_weights({f"transformer.{key}": value.clone() for key, value in state.items()}, adapter_name=name)


@pytest.mark.compiles
def test_every_state_of_adapters_is_served_by_the_same_graphs(pair: Pair) -> None:
    first, second = (lora(make("flux")[0].transformer, rank, seed=rank) for rank in (8, 16))
    wide = lora(make("flux")[0].transformer, 4, ("attn.to_q", "ff.net.2", "proj_mlp", "attn.to_out.0"), seed=3, use_rslora=True)
    plain = picture(pair.eager, pair.call)
    assert pair.same()
    pair.do(load(first, "first"))
    assert aot.ready(pair.served.transformer)
    assert pair.same()
    assert compare(picture(pair.served, pair.call), plain).relative_l2 > 1e-3  # it does something
    pair.do(load(second, "second"))
    pair.do(load(wide, "wide"))
    pair.do(lambda pipe: pipe.set_adapters(["first", "second", "wide"], [1.0, 0.5, -0.7]))
    assert pair.same()
    pair.do(lambda pipe: pipe.set_adapters("second", 0.3))
    assert pair.same()
    pair.do(lambda pipe: pipe.disable_lora())
    assert pair.same()
    assert compare(picture(pair.served, pair.call), plain).relative_l2 <= 2e-6
    pair.do(lambda pipe: pipe.enable_lora())
    assert pair.same()
    pair.do(lambda pipe: pipe.delete_adapters("second"))
    pair.do(lambda pipe: pipe.set_adapters("first"))
    assert pair.same()
    pair.do(lambda pipe: pipe.fuse_lora())
    assert pair.same()
    pair.do(lambda pipe: pipe.unfuse_lora())
    assert pair.same()
    pair.do(lambda pipe: pipe.unload_lora_weights())
    assert pair.same()
    (ledger,) = aot.stats()[-1:]
    assert not ledger["misses"]
    assert not ledger["compiled"]


@pytest.mark.compiles
def test_an_adapter_that_was_loaded_before_is_served(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(home))
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    (served, call), (eager, _) = make("flux"), make("flux")
    state = lora(make("flux")[0].transformer, 8)
    for pipe in (served, eager):
        load(state, "first")(pipe)
    aot.compile(served.transformer, options=O0, on_miss="error")
    assert compare(picture(served, call), picture(eager, call)).relative_l2 <= 2e-6
    aot.restore(served.transformer)


def written(pipe: Any) -> None:
    layer = next(layer for layer in pipe.transformer.modules() if isinstance(layer, Adapted))
    with torch.no_grad():
        layer.lora_B["first"].weight.mul_(1.7)


def replaced(pipe: Any) -> None:
    layer = next(layer for layer in pipe.transformer.modules() if isinstance(layer, Adapted))
    layer.lora_A["first"].weight = torch.nn.Parameter(layer.lora_A["first"].weight.detach() * -1)


def scaled(pipe: Any) -> None:
    layer = next(layer for layer in pipe.transformer.modules() if isinstance(layer, Adapted))
    layer.scaling["first"] = 0.25


def written_around(pipe: Any) -> None:
    layer = next(layer for layer in pipe.transformer.modules() if isinstance(layer, Adapted))
    layer.lora_A["first"].weight.data.mul_(-0.5)  # which torch does not count


def given_memory(pipe: Any) -> None:
    layer = next(layer for layer in pipe.transformer.modules() if isinstance(layer, Adapted))
    layer.lora_B["first"].weight.data = layer.lora_B["first"].weight.detach() * 2


def replaced_below(pipe: Any) -> None:
    layer = next(layer for layer in pipe.transformer.modules() if isinstance(layer, Adapted))
    layer.base_layer.weight = torch.nn.Parameter(layer.base_layer.weight.detach() * 0.5)


def swapped_hot(pipe: Any) -> None:
    state = lora(make("flux")[0].transformer, 8, seed=5)
    pipe.load_lora_weights({f"transformer.{key}": value for key, value in state.items()}, adapter_name="first", hotswap=True)


@pytest.mark.compiles
@pytest.mark.parametrize("what", [written, written_around, replaced, scaled, given_memory, replaced_below, swapped_hot])
def test_what_is_done_to_a_loaded_adapter_is_seen_by_the_next_call(pair: Pair, what: Callable[[Any], None]) -> None:
    pair.do(load(lora(make("flux")[0].transformer, 8), "first"))
    assert pair.same()
    before = picture(pair.served, pair.call)
    pair.do(what)
    assert pair.same()
    assert compare(picture(pair.served, pair.call), before).relative_l2 > 1e-5


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("rank", "targets", "config", "said"),
    [
        (RANK + 1, ATTENTION, {}, "rank 33, built for 32"),
        (8, ATTENTION, {"use_dora": True}, "no plain LoRA"),
        (8, ATTENTION, {"lora_bias": True}, "has a bias"),
    ],
)
def test_an_adapter_without_room_is_a_miss_that_says_why(
    pair: Pair, rank: int, targets: tuple[str, ...], config: dict[str, Any], said: str
) -> None:
    state = lora(make("flux")[0].transformer, rank, targets, **config)
    load(state, "first")(pair.served)
    assert said in str(aot.ready(pair.served.transformer))
    with pytest.raises(Miss, match=said):
        picture(pair.served, pair.call)
    other = make("flux")[0]
    load(state, "first")(other)
    with pytest.raises(Miss, match=said):
        aot.compile(other.transformer, options=O0, on_miss="eager", strict=True)
    pair.served.unload_lora_weights()
    assert pair.same()


@pytest.mark.compiles
def test_a_forward_that_was_replaced_within_an_adapter_is_a_miss(pair: Pair) -> None:
    load(lora(make("flux")[0].transformer, 8), "first")(pair.served)
    picture(pair.served, pair.call)
    layer = next(layer for layer in pair.served.transformer.modules() if isinstance(layer, Adapted))
    for part in (layer, layer.lora_A["first"]):
        part.forward = lambda value: value
        with pytest.raises(Miss, match="have a forward of their own"):
            picture(pair.served, pair.call)
        del part.forward
        picture(pair.served, pair.call)


@pytest.mark.compiles
@pytest.mark.parametrize("where", ["", "lora_A.first", "lora_dropout.first"])
def test_a_hook_on_an_adapter_is_a_miss(pair: Pair, where: str) -> None:
    load(lora(make("flux")[0].transformer, 8), "first")(pair.served)
    picture(pair.served, pair.call)
    layer = next(layer for layer in pair.served.transformer.modules() if isinstance(layer, Adapted))
    handle = layer.get_submodule(where).register_forward_hook(lambda *_: None)
    with pytest.raises(Miss, match="have a hook"):
        picture(pair.served, pair.call)
    handle.remove()
    picture(pair.served, pair.call)


def unet() -> tuple[torch.nn.Module, dict[str, Any]]:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    made = UNet2DModel(sample_size=16, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, attention_head_dim=4, **blocks)
    return made.eval().requires_grad_(False), {"sample": torch.randn(1, 3, 16, 16), "timestep": torch.tensor(7), "return_dict": False}


def text_encoder() -> tuple[torch.nn.Module, dict[str, Any]]:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=100)
    return CLIPTextModel(config).eval().requires_grad_(False), {"input_ids": torch.arange(77)[None] % 100, "return_dict": False}


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("model", "named", "adapted"),
    [
        (unet, ("all",), ["conv1", "to_q", "time_emb_proj", "downsamplers.0.conv", "conv_in"]),
        (text_encoder, (), ["q_proj", "fc1"]),
    ],
)
def test_convolutions_and_text_encoders_have_slots_too(
    model: Callable[[], Any], named: tuple[str, ...], adapted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any module, by whatever puts peft's layers into it."""
    monkeypatch.setenv("AOT_HOME", str(tmp_path))
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    (served, call), (eager, _) = model(), model()
    built = aot.build(model()[0], lambda made: made(**call), gpu="cpu", options=O0, scope="whole", lora_rank=8, lora_targets=named)
    assert built.manifest.measured["lora"]["rank"] == 8
    aot.compile(served, options=O0, on_miss="error")
    for found in (served, eager):
        torch.manual_seed(1)
        inject_adapter_in_model(LoraConfig(r=6, lora_alpha=9, target_modules=adapted, init_lora_weights=False), found, adapter_name="style")
    with torch.no_grad():
        assert compare(served(**call)[0], eager(**call)[0]).relative_l2 <= 2e-6
        assert compare(served(**call)[0], model()[0](**call)[0]).relative_l2 > 1e-3
    assert not aot.stats()[-1]["misses"]
    aot.restore(served)


def test_layers_are_named_by_the_ends_of_their_paths_and_never_by_number() -> None:
    model = make("flux")[0].transformer
    assert targets(model, ("transformer_blocks.0.attn.to_q",)) == [f"transformer_blocks.{block}.attn.to_q" for block in (0, 1)]
    assert targets(model, ("to_out.0", "add_*_proj"))
    assert not [path for path in targets(model, ()) if path in ("x_embedder", "proj_out")]
    with pytest.raises(BadInput, match="'to_z' names no linear layer"):
        targets(model, ("to_z",))


@pytest.mark.compiles
def test_an_adapter_is_checked_by_its_header_before_it_is_loaded(pair: Pair, tmp_path: Path) -> None:
    transformer = make("flux")[0].transformer

    def verdict(state: dict[str, Any]) -> str:
        save_file({f"transformer.{name}": value for name, value in state.items()}, tmp_path / "pytorch_lora_weights.safetensors")
        (fit,) = aot.check_lora(pair.served, tmp_path)
        assert [fit] == aot.check_lora(pair.served, {f"transformer.{name}": value for name, value in state.items()})
        return str(fit)

    assert verdict(lora(transformer, 8)) == "transformer: fits"
    assert "rank 33 at single_transformer_blocks.0.attn.to_k, built for 32: build with --lora-rank 33" in verdict(lora(transformer, 33))
    assert "of no plain LoRA" in verdict(lora(transformer, 8, use_dora=True))
    assert verdict(lora(transformer, 8, ("x_embedder",))) == "transformer: fits"  # around the graphs, which are of blocks
    wrong = {name: value[..., :-1].contiguous() if ".down." in name else value for name, value in lora(transformer, 8).items()}
    assert "it is of another model" in verdict(wrong)
    assert "would be ignored (none of its 1 layers is in the model)" in verdict({"nowhere.to_q.lora_A.weight": torch.zeros(8, 32)})
    load(lora(transformer, 30), "first")(pair.served)
    assert "rank 38 at single_transformer_blocks.0.attn.to_k, 30 of it active already, built for 32" in verdict(lora(transformer, 8))


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    pipe = make("flux")[0]
    (tmp_path / "some.safetensors").write_bytes(b"no such thing")
    for what in (tmp_path / "some.safetensors", tmp_path / "nothing", {"transformer.proj_out.weight": torch.zeros(2, 2)}):
        with pytest.raises(BadInput):
            aot.check_lora(pipe, what)
