"""Stable Diffusion XL base: text to image, a UNet; and the same with an IP-Adapter, which adds an image to the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.recipes import text
from aot.recipes.asked import asked
from aot.recipes.config import SMALL_VAE, instantiate, published
from aot.recipes.seeds import RARE, SDXL_SQUARES, SQUARES
from aot.request.example import Example
from aot.request.recipe import Component, Recipe, Variant
from aot.request.shape import Shape

if TYPE_CHECKING:
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

ADAPTER = "h94/IP-Adapter"  # where the adapter of the published weights is
_TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def _scheduler() -> EulerDiscreteScheduler:
    from diffusers import EulerDiscreteScheduler

    return instantiate(EulerDiscreteScheduler, "sdxl.scheduler")


def make(variant: Variant, components: tuple[str, ...]) -> StableDiffusionXLPipeline:
    """The pipeline with random weights; seed torch before. Without text encoders and tokenizers unless `components` names one."""
    from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel

    row = variant.configs
    return StableDiffusionXLPipeline(
        vae=instantiate(AutoencoderKL, "sdxl.vae", row.get("vae")).eval(),
        unet=instantiate(UNet2DConditionModel, "sdxl.unet", row.get("unet")).eval(),
        scheduler=_scheduler(),
        add_watermarker=False,
        **(_text(row) if text.wanted(components) else dict.fromkeys(_TEXT)),
    )


def _text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text_encoder": text.clip("sdxl.text_encoder", row.get("text_encoder"), projected=False),
        "text_encoder_2": text.clip("sdxl.text_encoder_2", row.get("text_encoder_2"), projected=True),
        "tokenizer": text.tokenizer(text.CLIP_TOKENS),
        "tokenizer_2": text.tokenizer(text.CLIP_TOKENS),
    }


def load(weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> StableDiffusionXLPipeline:
    """The pipeline with the weights of a folder or repository."""
    from diffusers import StableDiffusionXLPipeline

    without = {} if text.wanted(components) else dict.fromkeys(_TEXT)
    return StableDiffusionXLPipeline.from_pretrained(weights, torch_dtype=dtype, add_watermarker=False, **without)


def call(pipeline: StableDiffusionXLPipeline, example: Example, steps: int, seed: int) -> dict[str, Any]:
    arguments = asked(example, steps, seed, guidance=5.0)
    return {**arguments, **_prompt(pipeline, example.batch, arguments["generator"])}


def _prompt(pipeline: StableDiffusionXLPipeline, batch: int, generator: torch.Generator) -> dict[str, Any]:
    if pipeline.text_encoder is not None:
        return {"prompt": [text.PROMPT] * batch}
    weight, config = next(pipeline.unet.parameters()), pipeline.unet.config
    # what the UNet adds to its time embedding: six numbers of size and crop, and the pooled prompt
    pooled = (batch, config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim)
    size = (batch, text.CLIP_TOKENS, config.cross_attention_dim)
    return {
        "prompt_embeds": text.embedded(size, weight, generator),
        "pooled_prompt_embeds": text.embedded(pooled, weight, generator),
        "negative_prompt_embeds": text.embedded(size, weight, generator),
        "negative_pooled_prompt_embeds": text.embedded(pooled, weight, generator),
    }


def make_adapted(variant: Variant, components: tuple[str, ...]) -> StableDiffusionXLPipeline:
    """`make` with a random IP-Adapter loaded, and its image encoder if `components` names that."""
    pipeline = make(variant, components)
    if "image_encoder" in components:
        from transformers import CLIPImageProcessor

        pipeline.register_modules(image_encoder=_image_encoder(variant), feature_extractor=CLIPImageProcessor())
    weights = _adapter(pipeline.unet, _image_width(variant))
    # without accelerate's way of loading, which cannot hold weights that have no data: those of a simulated device
    pipeline.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None, low_cpu_mem_usage=False)
    return pipeline


def _image_encoder(variant: Variant) -> torch.nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {**published("ip_adapter_sdxl.image_encoder"), **variant.configs.get("image_encoder", {})}
    encoder: torch.nn.Module = CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).eval()
    return encoder


def _image_width(variant: Variant) -> int:
    """How many numbers an embedded image has."""
    default = published("ip_adapter_sdxl.image_encoder")["projection_dim"]
    return int(variant.configs.get("image_encoder", {}).get("projection_dim", default))


def _adapter(unet: Any, image_width: int) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights under the published names: the image's projection to 4 tokens, key and value of each cross-attention."""
    import torch

    tokens, width = int(published("ip_adapter_sdxl.adapter")["image_proj"]["num_tokens"]), unet.config.cross_attention_dim
    crosses = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors if "attn2" in name]
    sizes = [attention.to_k.out_features for attention in crosses]
    return {
        "image_proj": {
            "proj.weight": torch.randn(tokens * width, image_width) * image_width**-0.5,
            "proj.bias": torch.zeros(tokens * width),
            "norm.weight": torch.ones(width),
            "norm.bias": torch.zeros(width),
        },
        "ip_adapter": {
            f"{2 * number + 1}.{name}.weight": torch.randn(size, width) * width**-0.5
            for number, size in enumerate(sizes)
            for name in ("to_k_ip", "to_v_ip")
        },
    }


def load_adapted(weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> StableDiffusionXLPipeline:
    """`load` with the adapter of the subfolder `sdxl_models` of `weights`, where that is a folder that has one, else the published one."""
    pipeline = load(weights, dtype, components)
    source = weights if (Path(weights) / "sdxl_models").is_dir() else ADAPTER
    encoder = "image_encoder" if "image_encoder" in components else None
    pipeline.load_ip_adapter(source, subfolder="sdxl_models", weight_name="ip-adapter_sdxl.bin", image_encoder_folder=encoder)
    return pipeline


def call_adapted(pipeline: StableDiffusionXLPipeline, example: Example, steps: int, seed: int) -> dict[str, Any]:
    """`call` with an image beside the prompt: embedded, or as pixels where the pipeline has an image encoder."""
    import torch

    arguments = call(pipeline, example, steps, seed)
    generator, weight = torch.Generator().manual_seed(seed + 1), next(pipeline.unet.parameters())
    if pipeline.image_encoder is not None:
        side = pipeline.image_encoder.config.image_size
        return {**arguments, "ip_adapter_image": text.embedded((1, 3, side, side), weight, generator)}
    width = pipeline.unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features
    passes = 2 if example.guided else 1
    return {**arguments, "ip_adapter_image_embeds": [text.embedded((passes, 1, width), weight, generator)]}


_COMPONENTS = (
    Component("unet"),
    Component("vae.decoder"),
    *(Component(path, optional=True) for path in ("text_encoder", "text_encoder_2")),
)


_SMALL: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "block_out_channels": (128, 256, 256),
        "layers_per_block": 1,
        "attention_head_dim": (4, 8, 8),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 96,
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + 64,
    },
    "vae": SMALL_VAE,
    "text_encoder": text.clip_row(32, heads=4, layers=2, projection=32),
    "text_encoder_2": text.clip_row(64, heads=4, layers=2, projection=64),
    "image_encoder": {**text.clip_row(64, heads=4, layers=2, projection=80), "image_size": 56},
}
_TINY: Mapping[str, Mapping[str, Any]] = {
    "unet": {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4, 4),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": 24,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 16,
    },
    "vae": SMALL_VAE,
    "text_encoder": text.clip_row(8, heads=2, layers=1, projection=8),
    "text_encoder_2": text.clip_row(16, heads=2, layers=1, projection=16),
    "image_encoder": {**text.clip_row(16, heads=2, layers=1, projection=20), "image_size": 28},
}


def _variants(steps: int) -> dict[str, Variant]:
    return {
        "full": Variant("the published UNet of width 320", {}, shape=Shape(1024, 1024), steps=steps),
        "small": Variant("one layer a level of width 128, for a laptop", _SMALL, shape=Shape(256, 256), steps=steps),
        "tiny": Variant("one layer a level of width 32, for tests", _TINY, shape=Shape(64, 64), steps=4),
    }


SDXL = Recipe(
    name="sdxl",
    about="Stable Diffusion XL base 1.0, text to image",
    divisor=8,
    min_steps=1,
    components=_COMPONENTS,
    fuse_qkv=True,
    seed_shapes=(*SDXL_SQUARES, *RARE),
    variants=_variants(steps=30),
    make=make,
    load=load,
    call=call,
)
SDXL_IP_ADAPTER = Recipe(
    name="sdxl-ip-adapter",
    about="Stable Diffusion XL base 1.0 with an IP-Adapter, text and image to image",
    divisor=8,
    min_steps=1,
    components=(*_COMPONENTS, Component("image_encoder", optional=True)),
    fuse_qkv=True,
    seed_shapes=SQUARES,
    variants=_variants(steps=100),
    make=make_adapted,
    load=load_adapted,
    call=call_adapted,
)
