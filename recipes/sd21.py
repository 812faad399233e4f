"""Stable Diffusion 2.1: text to image, a UNet."""

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
    from diffusers import DDIMScheduler, StableDiffusionPipeline


def _scheduler() -> DDIMScheduler:
    from diffusers import DDIMScheduler

    return instantiate(DDIMScheduler, "sd21.scheduler")


def make(variant: Variant, components: tuple[str, ...]) -> StableDiffusionPipeline:
    """The pipeline with random weights; seed torch before. Without text encoder and tokenizer unless `components` names one."""
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    row = variant.configs
    with_text = text.wanted(components)
    return StableDiffusionPipeline(
        vae=instantiate(AutoencoderKL, "sd21.vae", row.get("vae")).eval(),
        text_encoder=text.clip("sd21.text_encoder", row.get("text_encoder"), projected=False) if with_text else None,
        tokenizer=text.tokenizer(text.CLIP_TOKENS) if with_text else None,
        unet=instantiate(UNet2DConditionModel, "sd21.unet", row.get("unet")).eval(),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load(weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> StableDiffusionPipeline:
    """The pipeline with the weights of a folder or repository."""
    from diffusers import StableDiffusionPipeline

    without = {} if text.wanted(components) else {"text_encoder": None, "tokenizer": None}
    return StableDiffusionPipeline.from_pretrained(
        weights, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False, **without
    )


def call(pipeline: StableDiffusionPipeline, example: Example, steps: int, seed: int) -> dict[str, Any]:
    arguments = asked(example, steps, seed, guidance=7.5)
    return {**arguments, **_prompt(pipeline, example.batch, arguments["generator"])}


def _prompt(pipeline: StableDiffusionPipeline, batch: int, generator: torch.Generator) -> dict[str, Any]:
    if pipeline.text_encoder is not None:
        return {"prompt": [text.PROMPT] * batch}
    weight = next(pipeline.unet.parameters())
    size = (batch, text.CLIP_TOKENS, pipeline.unet.config.cross_attention_dim)
    return {"prompt_embeds": text.embedded(size, weight, generator), "negative_prompt_embeds": text.embedded(size, weight, generator)}


SD21 = Recipe(
    name="sd21",
    about="Stable Diffusion 2.1, text to image",
    divisor=8,
    min_steps=1,
    components=(
        Component("unet"),
        Component("vae.decoder"),
        Component("text_encoder", optional=True),
    ),
    fuse_qkv=True,
    seed_shapes=SQUARES,
    variants={
        "full": Variant("the published UNet of width 320", {}, shape=Shape(768, 768), steps=20),
        "small": Variant(
            "one layer a level of width 128, for a laptop",
            {
                "unet": {
                    "block_out_channels": (128, 256, 256, 256),
                    "layers_per_block": 1,
                    "attention_head_dim": (4, 8, 8, 8),
                    "cross_attention_dim": 96,
                },
                "vae": SMALL_VAE,
                "text_encoder": text.clip_row(96, heads=6, layers=2, projection=96),
            },
            shape=Shape(256, 256),
            steps=20,
        ),
        "tiny": Variant(
            "one layer a level of width 32, for tests",
            {
                "unet": {
                    "block_out_channels": (32, 64, 64, 64),
                    "layers_per_block": 1,
                    "attention_head_dim": (2, 4, 4, 4),
                    "cross_attention_dim": 24,
                },
                "vae": SMALL_VAE,
                "text_encoder": text.clip_row(24, heads=2, layers=1, projection=24),
            },
            shape=Shape(128, 128),  # at 64 the deepest level has one pixel, and the compiler takes that for a rule
            steps=4,
        ),
    },
    make=make,
    load=load,
    call=call,
)
