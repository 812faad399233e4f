"""PixArt-alpha: text to image, a diffusion transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aot.recipes import text
from aot.recipes.asked import asked
from aot.recipes.config import SMALL_VAE, instantiate
from aot.recipes.seeds import SQUARES
from aot.request.example import Example
from aot.request.recipe import Component, Recipe, Variant
from aot.request.shape import Shape

if TYPE_CHECKING:
    import torch
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline

PROMPT_TOKENS = 120  # PixArtAlphaPipeline's max_sequence_length


def _scheduler() -> DPMSolverMultistepScheduler:
    from diffusers import DPMSolverMultistepScheduler

    return instantiate(DPMSolverMultistepScheduler, "pixart.scheduler")


def make(variant: Variant, components: tuple[str, ...]) -> PixArtAlphaPipeline:
    """The pipeline with random weights; seed torch before. Without text encoder and tokenizer unless `components` names one."""
    from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel

    row = variant.configs
    with_text = text.wanted(components)
    return PixArtAlphaPipeline(
        tokenizer=text.tokenizer(PROMPT_TOKENS) if with_text else None,
        text_encoder=text.t5("pixart.text_encoder", row.get("text_encoder")) if with_text else None,
        vae=instantiate(AutoencoderKL, "pixart.vae", row.get("vae")).eval(),
        transformer=instantiate(PixArtTransformer2DModel, "pixart.transformer", row.get("transformer")).eval(),
        scheduler=_scheduler(),
    )


def load(weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> PixArtAlphaPipeline:
    """The pipeline with the weights of a folder or repository."""
    from diffusers import PixArtAlphaPipeline

    without = {} if text.wanted(components) else {"text_encoder": None, "tokenizer": None}
    return PixArtAlphaPipeline.from_pretrained(weights, torch_dtype=dtype, **without)


def call(pipeline: PixArtAlphaPipeline, example: Example, steps: int, seed: int) -> dict[str, Any]:
    """Resolution binning is off: with it the pipeline computes another size than the one asked for."""
    arguments = asked(example, steps, seed, guidance=4.5)
    return {**arguments, **_prompt(pipeline, example.batch, arguments["generator"]), "use_resolution_binning": False}


def _prompt(pipeline: PixArtAlphaPipeline, batch: int, generator: torch.Generator) -> dict[str, Any]:
    import torch

    if pipeline.text_encoder is not None:
        return {"prompt": [text.PROMPT] * batch, "clean_caption": False}
    weight = next(pipeline.transformer.parameters())
    size = (batch, PROMPT_TOKENS, pipeline.transformer.config.caption_channels)
    mask = torch.ones(batch, PROMPT_TOKENS, dtype=torch.int64, device=weight.device)
    return {
        "prompt_embeds": text.embedded(size, weight, generator),
        "prompt_attention_mask": mask,
        "negative_prompt": None,
        "negative_prompt_embeds": text.embedded(size, weight, generator),
        "negative_prompt_attention_mask": mask,
    }


PIXART_ALPHA = Recipe(
    name="pixart-alpha",
    about="PixArt-alpha XL/2, text to image",
    divisor=16,  # the VAE's 8, the transformer's patches of 2
    min_steps=2,  # one step takes another branch of the pipeline, and fails there
    components=(
        Component("transformer"),
        Component("vae.decoder"),
        Component("text_encoder", optional=True),
    ),
    fuse_qkv=True,
    seed_shapes=SQUARES,
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
                "vae": SMALL_VAE,
                "text_encoder": text.T5_SMALL,
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
                "vae": SMALL_VAE,
                "text_encoder": text.T5_TINY,
            },
            shape=Shape(64, 64),
            steps=4,
        ),
    },
    make=make,
    load=load,
    call=call,
)
