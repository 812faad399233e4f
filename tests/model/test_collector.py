"""Models of transformers put hooks on their own submodules when they are asked for what those return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from aot.model.collector import is_collecting_hook, outputs_of
from aot.model.fingerprint import Fingerprint
from aot.model.seal import Seal
from aot.model.traced import TracedCode
from aot.model.tracing import tracing
from aot.serving.surroundings import surroundings


@pytest.fixture
def encoder() -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 50}
    return CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=1, eos_token_id=2, attn_implementation="eager")).eval()


def ask(encoder: Any, **more: bool) -> Any:
    with torch.no_grad():
        return encoder(torch.zeros(1, 8, dtype=torch.int64), **more)


def layer_of(encoder: Any) -> nn.Module:
    return next(child for child in encoder.modules() if type(child).__name__ == "CLIPEncoderLayer")


def test_an_encoder_is_the_same_before_and_after_its_first_call(encoder: Any) -> None:
    before = Fingerprint.of(encoder)
    ask(encoder, output_hidden_states=True)
    assert any(is_collecting_hook(hook) for child in encoder.modules() for hook in child._forward_hooks.values())
    assert Fingerprint.of(encoder) == before
    assert not before.unknown


def test_a_seal_holds_over_the_encoders_own_hooks_and_not_over_anybody_elses(encoder: Any) -> None:
    ask(encoder, output_hidden_states=True)
    seal = Seal(encoder, Fingerprint.of(encoder).met, TracedCode())
    ask(encoder, output_hidden_states=True)
    assert seal.holds()
    hook = layer_of(encoder).register_forward_hook(lambda *_: None)
    assert not seal.holds()
    assert "forward hook" in Fingerprint.of(encoder).unknown
    hook.remove()
    assert seal.holds()


@pytest.mark.parametrize(("asked", "refused"), [("output_hidden_states", None), ("output_attentions", "collects attentions")])
def test_a_part_is_refused_only_while_the_model_around_it_collects_what_is_inside_of_it(
    encoder: Any, asked: str, refused: str | None
) -> None:
    """What a layer returns is collected around it; what its attention returns, a graph of the layer would not hand out."""
    layer, found = layer_of(encoder), []
    layer.register_forward_pre_hook(lambda module, _: found.append(surroundings("cpu").refuses(module)))
    ask(encoder, **{asked: True})
    (reason,) = found
    assert reason is None if refused is None else refused in reason
    assert surroundings("cpu").refuses(encoder) is None


def test_what_other_classes_can_collect_is_no_part_of_an_encoders_code(encoder: Any) -> None:
    """transformers notes it for every class that a process makes an instance of."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.no_grad(), tracing() as codes:
        encoder(torch.zeros(1, 8, dtype=torch.int64), output_hidden_states=True)
    code = TracedCode.of(codes, encoder)
    size = {"hidden_size": 8, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    CLIPVisionModel(CLIPVisionConfig(**size, num_attention_heads=2, num_hidden_layers=1))
    assert code.differs(encoder) is None
    noted = outputs_of(type(encoder))
    assert noted
    before = dict(noted)
    try:
        noted["hidden_states"] = nn.Linear
        assert "collected" in (code.differs(encoder) or "")
    finally:
        noted.update(before)
