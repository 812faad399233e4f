"""PixArt-alpha: text to image, a diffusion transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aot.recipe import Component, Recipe, Variant
from aot.shape import Shape
from recipes.config import instantiate, published

if TYPE_CHECKING:
    import torch
    from diffusers import PixArtAlphaPipeline

PROMPT_TOKENS = 120  # PixArtAlphaPipeline's max_sequence_length


def make(variant: Variant, dtype: torch.dtype) -> PixArtAlphaPipeline:
    """The pipeline with random weights; seed torch before. Text encoder and tokenizer are left out: prompts come embedded."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    overrides = variant.configs
    pipeline = PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=instantiate(AutoencoderKL, {**published("pixart.vae"), **overrides.get("vae", {})}).eval(),
        transformer=instantiate(PixArtTransformer2DModel, {**published("pixart.transformer"), **overrides.get("transformer", {})}).eval(),
        scheduler=instantiate(DPMSolverMultistepScheduler, published("pixart.scheduler")),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if dtype == torch.float32 else pipeline.to(dtype=dtype)


def load(weights: str, dtype: torch.dtype) -> PixArtAlphaPipeline:
    """The pipeline with the weights of a folder or repository."""
    from diffusers import PixArtAlphaPipeline

    pipeline = PixArtAlphaPipeline.from_pretrained(weights, torch_dtype=dtype, text_encoder=None, tokenizer=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline: PixArtAlphaPipeline, shape: Shape, steps: int, seed: int) -> dict[str, Any]:
    """One image. Resolution binning is off: with it the pipeline computes another size than the one asked for."""
    import torch

    weight = next(pipeline.transformer.parameters())
    generator = torch.Generator().manual_seed(seed)
    size = (1, PROMPT_TOKENS, pipeline.transformer.config.caption_channels)
    embedded, negative = (torch.randn(size, generator=generator).to(weight) for _ in range(2))
    mask = torch.ones(1, PROMPT_TOKENS, dtype=torch.int64, device=weight.device)
    return {
        "prompt_embeds": embedded,
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": mask,
        "height": shape.height,
        "width": shape.width,
        "num_inference_steps": steps,
        "generator": generator,
        "use_resolution_binning": False,
        "output_type": "pt",
    }


PIXART_ALPHA = Recipe(
    name="pixart-alpha",
    about="PixArt-alpha XL/2, text to image",
    divisor=16,  # the VAE's 8, the transformer's patches of 2
    min_steps=2,  # one step takes another branch of the pipeline, and fails there
    components=(Component("transformer", blocks=("transformer_blocks",)), Component("vae.decoder")),
    variants={
        "full": Variant("the published 28 layers of width 1152", {}, shape=Shape(1024, 1024), steps=20),
        "small": Variant(
            "12 layers of width 128, for a laptop",
            {
                "transformer": {
                    "num_layers": 12,
                    "num_attention_heads": 8,
                    "attention_head_dim": 16,
                    "cross_attention_dim": 128,
                    "caption_channels": 96,
                    "sample_size": 32,
                },
                "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
            },
            shape=Shape(256, 256),
            steps=20,
        ),
        "tiny": Variant(
            "2 layers of width 24, for tests",
            {
                "transformer": {
                    "num_layers": 2,
                    "num_attention_heads": 3,
                    "attention_head_dim": 8,
                    "cross_attention_dim": 24,
                    "caption_channels": 32,
                    "sample_size": 8,
                },
                "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
            },
            shape=Shape(64, 64),
            steps=4,
        ),
    },
    make=make,
    load=load,
    call=call,
)
