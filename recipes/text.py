"""Text: tokenizers and text encoders of the published architectures, and prompts that were embedded before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aot.recipes.config import published

if TYPE_CHECKING:
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast, T5EncoderModel

PROMPT = "an example prompt"  # its words change no shape: every pipeline pads to a fixed length
CLIP_TOKENS = 77
# T5 in the `small` and `tiny` rows of diffusion transformers, as wide as their captions
T5_SMALL: Mapping[str, Any] = {"d_model": 96, "d_ff": 192, "d_kv": 16, "num_heads": 6, "num_layers": 2}
T5_TINY: Mapping[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 1}


def clip_row(width: int, *, heads: int, layers: int, projection: int) -> dict[str, int]:
    """What a `small` or `tiny` row changes of a CLIP model, of text or images."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "projection_dim": projection,
    }


def wanted(components: tuple[str, ...]) -> bool:
    """Whether text encoders are among `components`; with one, a pipeline needs all of its own."""
    return any(path.startswith("text_encoder") for path in components)


def tokenizer(length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of single words, padding to `length`: the published vocabularies are not part of an architecture."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unk>", *PROMPT.split()]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", model_max_length=length)


def clip(name: str, overrides: Mapping[str, Any] | None, *, projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """CLIP's text model of the published config `name`; `projected` with the head that SDXL's and SD3's pooled prompts need."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(**_config(name, overrides))).eval()


def t5(name: str, overrides: Mapping[str, Any] | None) -> T5EncoderModel:
    """T5's encoder of the published config `name`."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**_config(name, overrides))).eval()


def embedded(size: tuple[int, ...], like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A prompt that was embedded before: random, of the dtype and on the device of the weight `like`."""
    import torch

    return torch.randn(size, generator=generator).to(like)


def _config(name: str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    left_out = ("architectures", "torch_dtype", "transformers_version", "model_type")
    return {key: value for key, value in published(name).items() if key not in left_out} | dict(overrides or {})
