"""What tiny pipelines are made of: random weights, no text encoder, prompts given embedded as random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Made: TypeAlias = tuple[Any, dict[str, Any]]  # a pipeline, and the arguments of one call of it
TOKENS = 8
PIPELINES: dict[str, Callable[[], Made]] = {}


def named(maker: Callable[[], Made]) -> Callable[[], Made]:
    PIPELINES[maker.__name__.replace("_", "-")] = maker
    return maker


def random(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def image(height: int, width: int) -> torch.Tensor:
    """An image as pipelines take it: numbers from 0 to 1."""
    return random(1, 3, height, width).sigmoid()


def pil(height: int, width: int) -> Any:
    """The same as a picture."""
    from PIL import Image

    pixels = (image(height, width)[0] * 255).to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())


def kl(channels: int = 4, *, levels: int = 2, quant: bool = True, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **more,
    )


def flow(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)


def without_text(kind: type, *also: str, **parts: Any) -> Any:
    """A pipeline of `kind` of these parts, its text encoders and tokenizers left out."""
    import inspect

    names = [name for name in inspect.signature(kind.__init__).parameters if name.startswith(("text_encoder", "tokenizer"))]
    return kind(**dict.fromkeys([*names, *also]), **parts)


def mask(dtype: torch.dtype = torch.int64, *, padding: int = 0) -> torch.Tensor:
    """Which of the prompt's tokens count: all but the last ones."""
    found = torch.ones(1, TOKENS, dtype=dtype)
    found[:, TOKENS - padding :] = 0
    return found


def guided(prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A prompt, and as the negative one the same."""
    return {**prompt, **{f"negative_{name}": value.clone() for name, value in prompt.items()}}


def embedded(sizes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: random(*size) for name, size in sizes.items()}
