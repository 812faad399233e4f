"""Stable Diffusion 3 medium: text to image, a diffusion transformer that attends to text and image together."""

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
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

T5_TOKENS = 256  # StableDiffusion3Pipeline's max_sequence_length
_TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return instantiate(FlowMatchEulerDiscreteScheduler, "sd3.scheduler")


def make(variant: Variant, components: tuple[str, ...]) -> StableDiffusion3Pipeline:
    """The pipeline with random weights; seed torch before. Without text encoders and tokenizers unless `components` names one."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

    row = variant.configs
    return StableDiffusion3Pipeline(
        transformer=instantiate(SD3Transformer2DModel, "sd3.transformer", row.get("transformer")).eval(),
        scheduler=_scheduler(),
        vae=instantiate(AutoencoderKL, "sd3.vae", row.get("vae")).eval(),
        **(_text(row) if text.wanted(components) else dict.fromkeys(_TEXT)),
    )


def _text(row: Any) -> dict[str, Any]:
    return {
        "text_encoder": text.clip("sd3.text_encoder", row.get("text_encoder"), projected=True),
        "text_encoder_2": text.clip("sd3.text_encoder_2", row.get("text_encoder_2"), projected=True),
        "text_encoder_3": text.t5("sd3.text_encoder_3", row.get("text_encoder_3")),
        "tokenizer": text.tokenizer(text.CLIP_TOKENS),
        "tokenizer_2": text.tokenizer(text.CLIP_TOKENS),
        "tokenizer_3": text.tokenizer(T5_TOKENS),
    }


def load(weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> StableDiffusion3Pipeline:
    """The pipeline with the weights of a folder or repository."""
    from diffusers import StableDiffusion3Pipeline

    without = {} if text.wanted(components) else dict.fromkeys(_TEXT)
    return StableDiffusion3Pipeline.from_pretrained(weights, torch_dtype=dtype, **without)


def call(pipeline: StableDiffusion3Pipeline, example: Example, steps: int, seed: int) -> dict[str, Any]:
    arguments = asked(example, steps, seed, guidance=7.0)
    return {**arguments, **_prompt(pipeline, example.batch, arguments["generator"])}


def _prompt(pipeline: StableDiffusion3Pipeline, batch: int, generator: torch.Generator) -> dict[str, Any]:
    if pipeline.text_encoder is not None:
        return {"prompt": [text.PROMPT] * batch}
    weight, config = next(pipeline.transformer.parameters()), pipeline.transformer.config
    size, pooled = (batch, text.CLIP_TOKENS + T5_TOKENS, config.joint_attention_dim), (batch, config.pooled_projection_dim)
    return {
        "prompt_embeds": text.embedded(size, weight, generator),
        "pooled_prompt_embeds": text.embedded(pooled, weight, generator),
        "negative_prompt_embeds": text.embedded(size, weight, generator),
        "negative_pooled_prompt_embeds": text.embedded(pooled, weight, generator),
    }


SD3 = Recipe(
    name="sd3",
    about="Stable Diffusion 3 medium, text to image",
    divisor=16,
    min_steps=1,
    components=(
        Component("transformer"),
        Component("vae.decoder"),
        *(Component(path, optional=True) for path in ("text_encoder", "text_encoder_2", "text_encoder_3")),
    ),
    fuse_qkv=True,
    seed_shapes=SQUARES,  # the seeds name SD3 and print no figures of it: the sizes of the other images
    variants={
        "full": Variant("the published 24 layers of width 1536", {}, shape=Shape(1024, 1024), steps=28),
        "small": Variant(
            "6 layers of width 128, for a laptop",
            {
                "transformer": {
                    "num_layers": 6,
                    "num_attention_heads": 8,
                    "attention_head_dim": 16,
                    "joint_attention_dim": 96,
                    "caption_projection_dim": 128,
                    "pooled_projection_dim": 64,
                    "sample_size": 32,
                },
                "vae": SMALL_VAE,
                "text_encoder": text.clip_row(32, heads=4, layers=2, projection=32),
                "text_encoder_2": text.clip_row(32, heads=4, layers=2, projection=32),
                "text_encoder_3": text.T5_SMALL,
            },
            shape=Shape(256, 256),
            steps=28,
        ),
        "tiny": Variant(
            "3 layers of width 16, for tests",
            {
                "transformer": {
                    "num_layers": 3,
                    "num_attention_heads": 2,
                    "attention_head_dim": 8,
                    "joint_attention_dim": 32,
                    "caption_projection_dim": 16,
                    "pooled_projection_dim": 24,
                    "pos_embed_max_size": 96,
                    "sample_size": 8,
                },
                "vae": SMALL_VAE,
                "text_encoder": text.clip_row(8, heads=2, layers=1, projection=12),
                "text_encoder_2": text.clip_row(8, heads=2, layers=1, projection=12),
                "text_encoder_3": text.T5_TINY,
            },
            shape=Shape(64, 64),
            steps=4,
        ),
    },
    make=make,
    load=load,
    call=call,
)
