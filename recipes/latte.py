"""Latte: text to video, a diffusion transformer that looks along space and time in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aot.recipes import text
from aot.recipes.asked import asked
from aot.recipes.config import SMALL_VAE, instantiate
from aot.request.example import Example
from aot.request.recipe import Component, Recipe, Variant
from aot.request.shape import Shape

if TYPE_CHECKING:
    import torch
    from diffusers import DDIMScheduler, LattePipeline

PROMPT_TOKENS = 120  # LattePipeline's own, not to be set


def _scheduler() -> DDIMScheduler:
    from diffusers import DDIMScheduler

    return instantiate(DDIMScheduler, "latte.scheduler")


def make(variant: Variant, components: tuple[str, ...]) -> LattePipeline:
    """The pipeline with random weights; seed torch before. Without text encoder and tokenizer unless `components` names one.

    The VAE is given explicitly: Latte-1's own index names the plain one, which decodes frame by frame and flickers.
    """
    from diffusers import AutoencoderKLTemporalDecoder, LattePipeline, LatteTransformer3DModel

    row = variant.configs
    with_text = text.wanted(components)
    return LattePipeline(
        tokenizer=text.tokenizer(PROMPT_TOKENS) if with_text else None,
        text_encoder=text.t5("latte.text_encoder", row.get("text_encoder")) if with_text else None,
        vae=instantiate(AutoencoderKLTemporalDecoder, "latte.vae_temporal_decoder", row.get("vae")).eval(),
        transformer=instantiate(LatteTransformer3DModel, "latte.transformer", row.get("transformer")).eval(),
        scheduler=_scheduler(),
    )


def load(weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> LattePipeline:
    """The pipeline with the weights of a folder or repository.

    The temporal VAE is in the subfolder `vae_temporal_decoder`, as Latte-1 has it, or is the folder's own `vae`. The
    scheduler is ours: with `variance_type` set, as in published scripts, the pipeline fails at its first step.
    """
    from diffusers import AutoencoderKLTemporalDecoder, LattePipeline

    without = {} if text.wanted(components) else {"text_encoder": None, "tokenizer": None}
    try:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(weights, subfolder="vae_temporal_decoder", torch_dtype=dtype)
    except OSError:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(weights, subfolder="vae", torch_dtype=dtype)
    return LattePipeline.from_pretrained(weights, torch_dtype=dtype, vae=vae, scheduler=_scheduler(), **without)


def call(pipeline: LattePipeline, example: Example, steps: int, seed: int) -> dict[str, Any]:
    """All frames are decoded at once: the pipeline's default of 14 makes two calls of 14 and 2 frames, and two graphs."""
    arguments = asked(example, steps, seed, guidance=7.5)
    return {
        **arguments,
        **_prompt(pipeline, example.batch, arguments["generator"]),
        "video_length": example.frames,
        "decode_chunk_size": example.frames,
    }


def _prompt(pipeline: LattePipeline, batch: int, generator: torch.Generator) -> dict[str, Any]:
    if pipeline.text_encoder is not None:
        return {"prompt": [text.PROMPT] * batch, "clean_caption": False, "mask_feature": False}
    weight = next(pipeline.transformer.parameters())
    size = (batch, PROMPT_TOKENS, pipeline.transformer.config.caption_channels)
    return {
        "prompt_embeds": text.embedded(size, weight, generator),
        "negative_prompt": None,
        "negative_prompt_embeds": text.embedded(size, weight, generator),
    }


LATTE = Recipe(
    name="latte",
    about="Latte-1, text to video",
    divisor=16,
    min_steps=1,
    components=(
        Component("transformer"),
        Component("vae.decoder"),
        Component("text_encoder", optional=True),
    ),
    fuse_qkv=False,  # its model class has no such method
    seed_shapes=(Shape(512, 512),),
    variants={
        "full": Variant("the published 2 x 28 layers of width 1152", {}, shape=Shape(512, 512), steps=50, frames=16),
        "small": Variant(
            "2 x 3 layers of width 128, for a laptop",
            {
                "transformer": {
                    "num_layers": 3,
                    "num_attention_heads": 8,
                    "attention_head_dim": 16,
                    "cross_attention_dim": 128,
                    "caption_channels": 96,
                    "sample_size": 16,
                    "video_length": 16,
                },
                "vae": SMALL_VAE,
                "text_encoder": text.T5_SMALL,
            },
            shape=Shape(128, 128),
            steps=50,
            frames=16,
        ),
        "tiny": Variant(
            "2 x 2 layers of width 16, for tests",
            {
                "transformer": {
                    "num_layers": 2,
                    "num_attention_heads": 2,
                    "attention_head_dim": 8,
                    "cross_attention_dim": 16,
                    "caption_channels": 32,
                    "sample_size": 8,
                    "video_length": 4,
                },
                "vae": SMALL_VAE,
                "text_encoder": text.T5_TINY,
            },
            shape=Shape(64, 64),
            steps=4,
            frames=4,
        ),
    },
    make=make,
    load=load,
    call=call,
)
