"""Asked: the arguments of a call that every diffusers pipeline takes under the same names."""

from __future__ import annotations

from typing import Any

from aot.request.example import Example


def asked(example: Example, steps: int, seed: int, *, guidance: float) -> dict[str, Any]:
    """Size, steps, a seeded generator, and the pipeline's own guidance scale, or 1: from there on it makes one pass a step."""
    import torch

    return {
        "height": example.shape.height,
        "width": example.shape.width,
        "num_inference_steps": steps,
        "guidance_scale": guidance if example.guided else 1.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }
