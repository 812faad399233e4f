"""The tiny PixArt-alpha pipeline, and calls of it."""

from typing import Any

import torch

from aot.recipes import find
from aot.request.example import Example
from aot.request.shape import Shape

RECIPE = find("pixart-alpha")


def make_pipe(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return RECIPE.pipeline(RECIPE.variant("tiny"), dtype="float32", weights=None)


def denoiser_call(height: int = 8, width: int = 8, *, batch: int = 2, seed: int = 1) -> dict[str, Any]:
    """One call of the transformer as the pipeline makes it; sizes in latents."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, height, width, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 120, 32, generator=generator),
        "encoder_attention_mask": torch.ones(batch, 120, dtype=torch.int64),
        "timestep": torch.tensor([7]).expand(batch),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def denoise(pipe: Any, **call: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = pipe.transformer(**(call or denoiser_call()))[0]
    return found


def image(pipe: Any, shape: Shape) -> torch.Tensor:
    found: torch.Tensor = pipe(**RECIPE.call(pipe, Example(shape), 3, 0)).images
    return found
