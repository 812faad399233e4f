"""Tiny diffusers pipelines of today, one maker each: two of every kind of repeated block, two steps, a size that is never square.

Checked with diffusers 0.42.1.
"""

from __future__ import annotations

import torch

from tests.pipelines import images, modular, unets, videos  # noqa: F401
from tests.pipelines.parts import PIPELINES, Made

__all__ = ["PIPELINES", "make"]


def make(name: str) -> Made:
    """The pipeline of that name in `PIPELINES`, seeded, ready to run on the CPU in float32."""
    torch.manual_seed(0)
    pipeline, call = PIPELINES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
            _no_rubbish(part)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), **call}


def _no_rubbish(module: torch.nn.Module) -> None:
    """Give numbers to what diffusers allocates and leaves unset (padding tokens), and to what it sets to zero."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "pad_token" in name or not bool(weight.abs().sum().isfinite()) or float(weight.abs().max()) == 0:
                weight.normal_(std=0.05)
