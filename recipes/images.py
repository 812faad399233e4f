"""Images of today, by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aot.recipes.row import IMAGE, NO_QUANT, SHIFTED, SMALL_IMAGE, TINY_IMAGE, Family, Part, Row, embeds, heads, kl

_FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159, **NO_QUANT}
_SD3_VAE = {"scaling_factor": 1.5305, "shift_factor": 0.0609, **NO_QUANT}
_WIDE = [128, 256, 512, 512]


def _flux(layers: int, heads: int, dim: int, axes: list[int], text: int, pooled: int, vae: Part, call: Mapping[str, Any]) -> Row:
    sizes = {"num_layers": layers, "num_single_layers": layers * 2, "num_attention_heads": heads, "attention_head_dim": dim}
    channels = 4 * int(vae[1]["latent_channels"])
    widths = {"in_channels": channels, "joint_attention_dim": text, "pooled_projection_dim": pooled, "axes_dims_rope": axes}
    parts = {"transformer": ("FluxTransformer2DModel", {**sizes, **widths, "guidance_embeds": True}), "vae": vae, "scheduler": SHIFTED}
    return Row(parts, call, {})


_FLUX_TINY_VAE = kl([8, 8], channels=4, layers=1, groups=4, **_FLUX_VAE)
_FULL_FLUX = _flux(19, 24, 128, [16, 56, 56], 4096, 768, kl(_WIDE, channels=16, layers=2, groups=32, **_FLUX_VAE), {})
_FLUX_SINGLE = {**_FULL_FLUX.parts["transformer"][1], "num_single_layers": 38}

FLUX_1 = Family(
    "flux.1-dev",
    "FLUX.1-dev, 11.9 B, text to image",
    "FluxPipeline",
    {
        "full": Row(
            {**_FULL_FLUX.parts, "transformer": ("FluxTransformer2DModel", _FLUX_SINGLE)},
            {**IMAGE, **embeds(512, 4096, pooled=768)},
            {},
        ),
        "small": _flux(
            *(4, 8, 32, [8, 12, 12], 128, 64, kl([32, 64], channels=16, layers=1, groups=8, **_FLUX_VAE)),
            {**SMALL_IMAGE, **embeds(64, 128, pooled=64)},
        ),
        "tiny": _flux(2, 2, 16, [4, 4, 8], 32, 32, _FLUX_TINY_VAE, {**TINY_IMAGE, **embeds(8, 32, pooled=32)}),
    },
)


def _flux2(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any]) -> Row:
    return Row({"transformer": ("Flux2Transformer2DModel", config), "vae": ("AutoencoderKLFlux2", vae), "scheduler": SHIFTED}, call, {})


def _levels(widths: list[int]) -> dict[str, Any]:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        **NO_QUANT,
    }


FLUX_2 = Family(
    "flux.2-dev",
    "FLUX.2-dev, 32 B, text to image",
    "Flux2Pipeline",
    {
        "full": _flux2({}, {}, {**IMAGE, **embeds(512, 15360)}),
        "small": _flux2(
            {
                **heads(4, 8, 32),
                "in_channels": 16,
                "num_single_layers": 8,
                "joint_attention_dim": 128,
                "axes_dims_rope": [8, 8, 8, 8],
            },
            _levels([32, 64]),
            {**SMALL_IMAGE, **embeds(64, 128)},
        ),
        "tiny": _flux2(
            {
                **heads(2, 2, 16),
                "in_channels": 16,
                "num_single_layers": 2,
                "joint_attention_dim": 32,
                "axes_dims_rope": [4, 4, 4, 4],
                "timestep_guidance_channels": 32,
            },
            _levels([8, 8]),
            {**TINY_IMAGE, **embeds(8, 32)},
        ),
    },
)


def _qwen(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any], tokens: int, width: int) -> Row:
    masks = {"prompt_embeds_mask": f"1x{tokens}", "negative_prompt_embeds_mask": f"1x{tokens}"}
    parts = {"transformer": ("QwenImageTransformer2DModel", config), "vae": ("AutoencoderKLQwenImage", vae), "scheduler": SHIFTED}
    return Row(parts, {**call, "true_cfg_scale": 4.0, **embeds(tokens, width, guided=True), **masks}, {})


def _qwen_vae(base: int) -> dict[str, Any]:
    scales = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    return {"base_dim": base, "z_dim": 4, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True], **scales}


QWEN_IMAGE = Family(
    "qwen-image",
    "Qwen-Image, 20.4 B, text to image",
    "QwenImagePipeline",
    {
        "full": _qwen({}, {}, {"height": 1328, "width": 1328}, 256, 3584),
        "small": _qwen(
            {**heads(6, 8, 32), "in_channels": 16, "out_channels": 4, "joint_attention_dim": 128, "axes_dims_rope": [8, 12, 12]},
            _qwen_vae(16),
            *(SMALL_IMAGE, 32, 128),
        ),
        "tiny": _qwen(
            {**heads(2, 2, 16), "in_channels": 16, "out_channels": 4, "joint_attention_dim": 16, "axes_dims_rope": [8, 4, 4]},
            _qwen_vae(8),
            *(TINY_IMAGE, 8, 16),
        ),
    },
)


def _z_image(config: Mapping[str, Any], vae: Part, call: Mapping[str, Any], tokens: int, width: int) -> Row:
    scheduler = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    parts = {"transformer": ("ZImageTransformer2DModel", config), "vae": vae, "scheduler": scheduler}
    prompt = {"prompt_embeds": [f"{tokens}x{width}"], "guidance_scale": 0.0}
    return Row(parts, {**call, **prompt}, {})


Z_IMAGE = Family(
    "z-image-turbo",
    "Z-Image-Turbo, 6.2 B, text to image",
    "ZImagePipeline",
    {
        "full": _z_image({}, kl(_WIDE, channels=16, layers=2, groups=32, **_FLUX_VAE), IMAGE, 128, 2560),
        "small": _z_image(
            {
                "dim": 256,
                "n_layers": 6,
                "n_refiner_layers": 2,
                "n_heads": 8,
                "n_kv_heads": 8,
                "cap_feat_dim": 128,
                "axes_dims": [8, 12, 12],
            },
            kl([32, 64], channels=16, layers=1, groups=8, **_FLUX_VAE),
            *(SMALL_IMAGE, 32, 128),
        ),
        "tiny": _z_image(
            {
                "dim": 32,
                "n_layers": 2,
                "n_refiner_layers": 2,
                "n_heads": 2,
                "n_kv_heads": 2,
                "cap_feat_dim": 16,
                "axes_dims": [8, 4, 4],
                "axes_lens": [256, 32, 32],
            },
            kl([8, 8], channels=16, layers=1, groups=4, **_FLUX_VAE),
            *(TINY_IMAGE, 8, 16),
        ),
    },
)


def _sd35(config: Mapping[str, Any], vae: Part, call: Mapping[str, Any], tokens: int, width: int, pooled: int) -> Row:
    transformer = ("SD3Transformer2DModel", {"qk_norm": "rms_norm", **config})
    parts = {"transformer": transformer, "vae": vae, "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})}
    return Row(parts, {**call, **embeds(tokens, width, guided=True, pooled=pooled)}, {})


def _joint(text: int, inner: int, pooled: int, channels: int) -> dict[str, int]:
    return {
        "joint_attention_dim": text,
        "caption_projection_dim": inner,
        "pooled_projection_dim": pooled,
        "in_channels": channels,
        "out_channels": channels,
    }


SD_3_5 = Family(
    "sd3.5-large",
    "Stable Diffusion 3.5 large, 8.1 B, text to image",
    "StableDiffusion3Pipeline",
    {
        "full": _sd35(
            {**heads(38, 38, 64), **_joint(4096, 2432, 2048, 16), "pos_embed_max_size": 192},
            kl(_WIDE, channels=16, layers=2, groups=32, **_SD3_VAE),
            *(IMAGE, 333, 4096, 2048),
        ),
        "small": _sd35(
            {**heads(6, 8, 32), **_joint(128, 256, 64, 4), "sample_size": 32, "pos_embed_max_size": 64},
            kl([32, 64], channels=4, layers=1, groups=8, **_SD3_VAE),
            *(SMALL_IMAGE, 32, 128, 64),
        ),
        "tiny": _sd35(
            {**heads(3, 4, 8), **_joint(32, 32, 64, 4), "sample_size": 32, "pos_embed_max_size": 32},
            kl([8, 8], channels=4, layers=1, groups=4, **_SD3_VAE),
            *(TINY_IMAGE, 8, 32, 64),
        ),
    },
)
