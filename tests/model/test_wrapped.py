"""Weights that are wrapper subclasses, as quantised ones are: taken apart, put together, and looked at again at every call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor
from optimum import quanto
from packaging.version import Version
from torch import nn
from torchao import quantization

import aot
from aot.artifact.certificate import compare
from aot.machine.sku import find_sku
from aot.model.fingerprint import Fingerprint
from aot.model.hollow import hollow
from aot.model.slots import put_slots
from aot.model.weights import Frozen, LiveWeights
from aot.model.wrapped import Assembly, assemblies, is_wrapped, named_parts, parts, put_together, with_parts


def _torchao(kind: Any) -> Callable[[nn.Module], Any]:
    return lambda module: quantization.quantize_(module, kind())


def _gguf(name: str) -> Callable[[nn.Module], None]:
    """As diffusers loads a file of llama.cpp's: linear layers whose weights are bytes in one of its formats."""

    def quantise(module: nn.Module) -> None:
        kind = getattr(gguf.GGMLQuantizationType, name)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for path, linear in [found for found in module.named_children() if isinstance(found[1], nn.Linear)]:
            made = GGUFLinear(linear.in_features, linear.out_features, True, compute_dtype=torch.float32)
            packed = gguf.quants.quantize(linear.weight.numpy(), kind) if name == "Q8_0" else None
            shape = linear.out_features, linear.in_features // block * size
            data = torch.from_numpy(packed) if packed is not None else torch.randint(0, 32, shape, dtype=torch.uint8)
            made.weight, made.bias = GGUFParameter(data, quant_type=kind), linear.bias
            module.add_module(path, made.requires_grad_(False))

    return quantise


def _quanto(module: nn.Module) -> None:
    """Its graphs call an operator of its own."""
    quanto.quantize(module, weights=quanto.qint8)
    quanto.freeze(module)


def _cast(module: nn.Module) -> None:
    apply_layerwise_casting(module, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=())


SCHEMES: dict[str, tuple[Callable[[nn.Module], Any], float]] = {  # and what a graph may differ from its own eager by
    "int8 weights": (_torchao(quantization.Int8WeightOnlyConfig), 1e-5),
    "float8 weights": (_torchao(quantization.Float8WeightOnlyConfig), 1e-5),
    "int8 weights and activations": (_torchao(quantization.Int8DynamicActivationInt8WeightConfig), 1e-2),
    "4 bit weights": (_torchao(partial(quantization.IntxWeightOnlyConfig, torch.int4)), 1e-5),
    "GGUF Q8_0": (_gguf("Q8_0"), 1e-2),
    "quanto int8 weights": (_quanto, 1e-5),
    "layerwise casting": (_cast, 1e-5),
}
ALSO = {f"GGUF {name}": (_gguf(name), 1e-2) for name in ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")}  # where time is
WRAPPED = [scheme for scheme in SCHEMES if scheme != "layerwise casting"]
FLOAT8 = ("float8 weights", "layerwise casting")


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.act(self.first(x)))


def _quantised(scheme: str = "int8 weights") -> Mlp:
    torch.manual_seed(0)
    module = Mlp().eval().requires_grad_(False)
    (SCHEMES | ALSO)[scheme][0](module)
    return module


def _plain(weight: torch.Tensor) -> torch.Tensor:
    """What it stands for."""
    return dequantize_gguf_tensor(weight).float() if isinstance(weight, GGUFParameter) else weight.dequantize()


@pytest.mark.parametrize("scheme", WRAPPED)
@pytest.mark.parametrize("how", ["written", "another"])
def test_weights_inside_a_graph_are_the_same_until_one_is_written_to_or_another(scheme: str, how: str) -> None:
    module = _quantised(scheme)
    frozen = Frozen(module)
    assert frozen.changed() is None
    if how == "another":
        module.first.weight = _quantised(scheme).first.weight
    else:
        next(tensor for _, tensor in parts(module.first.weight)).zero_()
    assert "weights were changed" in (frozen.changed() or "")


@pytest.mark.parametrize("scheme", WRAPPED)
def test_a_weight_is_put_together_of_the_tensors_within_it(scheme: str) -> None:
    weight = _quantised(scheme).first.weight
    assert is_wrapped(weight)
    assert not is_wrapped(torch.ones(2))
    inner = list(parts(weight))
    assert len(inner) >= (1 if isinstance(weight, GGUFParameter) else 2)
    assert all(type(tensor) in (torch.Tensor, nn.Parameter) for _, tensor in inner)
    again = with_parts(weight, torch.clone)
    assert type(again) is type(weight)
    assert torch.equal(_plain(again), _plain(weight))
    assembly = Assembly.of(weight)
    assert assembly is not None
    assert assembly.same(weight)
    assert assembly.same(again)
    assert not assembly.same(torch.ones(512, 256))
    assert [name for name, _ in named_parts("first.weight", weight)] == [f"first.weight!{path}" for path, _ in inner]


def test_live_weights_are_the_tensors_within_and_nowhere_once_a_weight_is_wrapped_otherwise() -> None:
    module = _quantised()
    live = LiveWeights(module)
    tensors = live.tensors()
    assert tensors is not None
    assert {name.partition("!")[0] for name in live.names} == {"first.weight", "first.bias", "last.weight", "last.bias"}
    assert all(not is_wrapped(tensor) for tensor in tensors)
    made = put_together(live.names, tensors, assemblies(module))
    assert torch.equal(made["last.weight"].dequantize(), module.last.weight.dequantize())
    module.last.weight = nn.Parameter(torch.ones(256, 512), requires_grad=False)
    assert live.tensors() is None
    assert LiveWeights(_quantised(), live.names).tensors() is not None
    assert LiveWeights(_quantised("float8 weights"), live.names).tensors() is None


def test_a_hollow_copy_is_of_the_same_identity_and_has_no_memory() -> None:
    module = _quantised()
    found = hollow(module)
    assert {tensor.device.type for _, tensor in parts(found.first.weight)} == {"meta"}
    assert {tensor.device.type for _, tensor in parts(module.first.weight)} == {"cpu"}
    assert Fingerprint.of(found).digest != Fingerprint.of(Mlp()).digest


def test_layers_of_gguf_have_room_for_adapters_in_the_dtype_that_they_compute_in() -> None:
    module, x = _quantised("GGUF Q8_0"), torch.randn(4, 256)
    plain, identity = module(x), Fingerprint.of(module).digest
    assert put_slots(module, 4, ("all",), lambda spec, _: torch.full(spec.shape, 0.01, dtype=getattr(torch, spec.dtype))) == [
        "first",
        "last",
    ]
    assert Fingerprint.of(module).digest == identity
    first, last = module.first, module.last
    hidden = module.act(GGUFLinear.forward(first, x) + x @ first.slot_a.T @ first.slot_b.T)
    expected = x + GGUFLinear.forward(last, hidden) + hidden @ last.slot_a.T @ last.slot_b.T
    assert compare(module(x), expected).relative_l2 <= 1e-6 < compare(plain, expected).relative_l2


@pytest.mark.compiles
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantised_model_is_built_where_it_is_and_served_as_its_own_eager(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if scheme in FLOAT8 and Version(torch.__version__) < Version("2.13"):
        pytest.skip("torch 2.11 makes C++ of float8 that does not compile; the build says so")
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    module, plain, x = _quantised(scheme), Mlp().eval().requires_grad_(False), torch.randn(4, 256)
    with torch.no_grad():
        expected = module(x)
        aot.build(module, lambda module: module(x), gpu="cpu", name="mlp", scope="whole")
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")

    def served(model: nn.Module) -> tuple[bool, torch.Tensor]:
        with torch.no_grad():
            found = model(x)
        return bool(sum(aot.stats()[-1]["hits"].values())), found

    other = aot.compile(_quantised(scheme), on_miss="eager")
    hit, found = served(other)
    assert hit
    assert compare(found, expected).relative_l2 <= SCHEMES[scheme][1]
    weight = other.last.weight  # from here on no more what was built
    other.last.weight = nn.Parameter(_plain(weight) if scheme in WRAPPED else weight.to(torch.float8_e5m2), requires_grad=False)
    with torch.no_grad():
        changed = other(x)
        assert sum(aot.stats()[-1]["hits"].values()) == 1
        aot.restore(other)
        assert compare(changed, other(x)).relative_l2 <= 1e-6
    aot.compile(plain, on_miss="eager")
    assert not served(plain)[0]
    aot.restore(plain)


class Packed(nn.Parameter):
    """As GGUF's: bytes, and beside them how they are to be read."""

    @staticmethod
    def __new__(cls, data: torch.Tensor, kind: int = 8) -> Packed:
        found: Packed = torch.Tensor._make_subclass(cls, data, False)  # type: ignore[attr-defined]
        found.kind = kind
        return found

    kind: int


def test_weights_of_a_class_that_nothing_takes_apart_are_refused_by_name() -> None:
    module = Mlp().eval().requires_grad_(False)
    module.last.weight = Packed(module.last.weight)
    with aot.record(module, name="mlp") as found, torch.no_grad():
        module(torch.ones(1, 256))
    assert list(found.left) == ["module"]
    assert "weight last.weight: a weight is a tests.model.test_wrapped.Packed, which graphs do not take" in found.left["module"]


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h200", "rtx-4090", "rtx-pro-6000-server"])
@pytest.mark.parametrize("scheme", [*SCHEMES, "GGUF Q4_K"])
def test_quantised_weights_are_built_for_a_gpu_that_is_absent(
    scheme: str, gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    with torch.no_grad():
        built = aot.build(_quantised(scheme), lambda module: module(torch.ones(64, 256)), gpu=gpu, name="mlp", scope="whole")
    (cubins,) = built.manifest.measured["cubins"].values()
    assert list(cubins) == [str(find_sku(gpu).architecture)]
