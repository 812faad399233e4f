"""The live scale, without a compiler: it must be diffusers' own mathematics, and leave no trace."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from aot.artifact.certificate import compare
from aot.errors import BadInput
from aot.model.ip_adapter import adapters, live_scale
from tests.recipes.test_recipes import make, serve

NAME = "sdxl-ip-adapter"


@pytest.fixture(scope="module")
def eager() -> Any:
    return make(NAME)


def test_every_scale_gives_what_diffusers_own_gives(eager: Any) -> None:
    pipe = make(NAME)
    assert live_scale(pipe.unet)
    for scale in (0.0, 0.1, 0.5, 1.0, [0.3], {"up": 0.9}):
        pipe.set_ip_adapter_scale(scale)
        eager.set_ip_adapter_scale(scale)
        assert compare(serve(pipe, NAME), serve(eager, NAME)).relative_l2 <= 2e-6, scale


def test_a_tensor_given_as_scale_is_read_at_every_call_and_a_float_after_it_leaves_it_alone(eager: Any) -> None:
    pipe, scale = make(NAME), torch.tensor([0.2])
    live_scale(pipe.unet)
    pipe.set_ip_adapter_scale(scale)
    scale.fill_(0.6)
    eager.set_ip_adapter_scale(0.6)
    assert compare(serve(pipe, NAME), serve(eager, NAME)).relative_l2 <= 2e-6
    pipe.set_ip_adapter_scale(0.1)
    assert scale.item() == pytest.approx(0.6)


@pytest.mark.parametrize("scale", [torch.tensor(0.5, dtype=torch.float16), torch.tensor([0.5, 0.5]), torch.tensor(1)])
def test_a_tensor_that_no_graph_could_read_in_place_is_refused(scale: torch.Tensor) -> None:
    pipe = make(NAME)
    live_scale(pipe.unet)
    with pytest.raises(BadInput, match="IP-Adapter scale") as caught:
        pipe.set_ip_adapter_scale(scale)
    assert "torch.float32 on cpu" in caught.value.remedy


def test_undoing_gives_the_scale_in_force_back_and_the_same_model(eager: Any) -> None:
    pipe = make(NAME)
    names = set(pipe.unet.state_dict())
    undo = live_scale(pipe.unet)
    assert undo
    assert set(pipe.unet.state_dict()) == names
    assert live_scale(pipe.unet) is None
    pipe.set_ip_adapter_scale(0.4)
    undo(pipe.unet)
    assert all(processor.scale == [pytest.approx(0.4)] for processor in adapters(pipe.unet))
    assert {type(child) for child in pipe.unet.modules()} == {type(child) for child in eager.unet.modules()}
    eager.set_ip_adapter_scale(0.4)
    assert compare(serve(pipe, NAME), serve(eager, NAME)).relative_l2 <= 2e-6


def test_a_model_without_an_adapter_is_left_alone() -> None:
    assert live_scale(make("sdxl").unet) is None


def test_torch_compile_too_makes_one_graph_for_every_scale(eager: Any) -> None:
    pipe = make(NAME)
    live_scale(pipe.unet)
    before = counters["stats"]["unique_graphs"]
    pipe.unet.forward = torch.compile(pipe.unet.forward, backend="eager", fullgraph=True, dynamic=False)
    for scale in (1.0, 0.0, torch.tensor(0.3), 0.7):
        pipe.set_ip_adapter_scale(scale)
        eager.set_ip_adapter_scale(float(scale))
        assert compare(serve(pipe, NAME), serve(eager, NAME)).relative_l2 <= 2e-6, scale
    assert counters["stats"]["unique_graphs"] == before + 1
