"""Rows: pipelines of today as data: their classes, configs and one call. What is not written is the class' own default.

Configs are those of the published repositories as diffusers 0.42.1 has them: the defaults of its classes, and what its conversion
scripts set beside. Weights are neither needed nor there; text encoders are left out, prompts are given embedded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Part: TypeAlias = tuple[str, Mapping[str, Any]]  # a class of diffusers, and its config


@dataclass(frozen=True, slots=True)
class Row:
    """One size of a pipeline: its parts, further arguments of its class, and what it is called with, as `--call` writes it."""

    parts: Mapping[str, Part]
    call: Mapping[str, Any]
    more: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """A published pipeline in three sizes: `full` as published, `small` for a laptop, `tiny` for tests."""

    name: str
    about: str
    pipeline: str  # the class
    rows: Mapping[str, Row]


_FLOW: Part = ("FlowMatchEulerDiscreteScheduler", {})
_SHIFTED: Part = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
_UNIPC: Part = ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0})
_IMAGE = {"height": 1024, "width": 1024}
_SMALL_IMAGE, _TINY_IMAGE = {"height": 128, "width": 192}, {"height": 32, "width": 48}


def _kl(widths: list[int], *, channels: int, layers: int, groups: int, **more: Any) -> Part:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * len(widths), "up_block_types": ["UpDecoderBlock2D"] * len(widths)}
    sizes = {"block_out_channels": widths, "latent_channels": channels, "layers_per_block": layers, "norm_num_groups": groups}
    return "AutoencoderKL", {**blocks, **sizes, **more}


_NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
_FLUX_VAE = {"scaling_factor": 0.3611, "shift_factor": 0.1159, **_NO_QUANT}
_SD3_VAE = {"scaling_factor": 1.5305, "shift_factor": 0.0609, **_NO_QUANT}
_WIDE = [128, 256, 512, 512]


def _embeds(tokens: int, width: int, *, guided: bool = False, pooled: int = 0) -> dict[str, str]:
    found = {"prompt_embeds": f"1x{tokens}x{width}"} | ({"pooled_prompt_embeds": f"1x{pooled}"} if pooled else {})
    return found | ({f"negative_{name}": size for name, size in found.items()} if guided else {})


def _flux(layers: int, heads: int, dim: int, axes: list[int], text: int, pooled: int, vae: Part, call: Mapping[str, Any]) -> Row:
    sizes = {"num_layers": layers, "num_single_layers": layers * 2, "num_attention_heads": heads, "attention_head_dim": dim}
    channels = 4 * int(vae[1]["latent_channels"])
    widths = {"in_channels": channels, "joint_attention_dim": text, "pooled_projection_dim": pooled, "axes_dims_rope": axes}
    parts = {"transformer": ("FluxTransformer2DModel", {**sizes, **widths, "guidance_embeds": True}), "vae": vae, "scheduler": _SHIFTED}
    return Row(parts, call, {})


_FLUX_TINY_VAE = _kl([8, 8], channels=4, layers=1, groups=4, **_FLUX_VAE)
_FULL_FLUX = _flux(19, 24, 128, [16, 56, 56], 4096, 768, _kl(_WIDE, channels=16, layers=2, groups=32, **_FLUX_VAE), {})
_FLUX_SINGLE = {**_FULL_FLUX.parts["transformer"][1], "num_single_layers": 38}

FLUX_1 = Family(
    "flux.1-dev",
    "FLUX.1-dev, 11.9 B, text to image",
    "FluxPipeline",
    {
        "full": Row(
            {**_FULL_FLUX.parts, "transformer": ("FluxTransformer2DModel", _FLUX_SINGLE)},
            {**_IMAGE, **_embeds(512, 4096, pooled=768)},
            {},
        ),
        "small": _flux(
            *(4, 8, 32, [8, 12, 12], 128, 64, _kl([32, 64], channels=16, layers=1, groups=8, **_FLUX_VAE)),
            {**_SMALL_IMAGE, **_embeds(64, 128, pooled=64)},
        ),
        "tiny": _flux(2, 2, 16, [4, 4, 8], 32, 32, _FLUX_TINY_VAE, {**_TINY_IMAGE, **_embeds(8, 32, pooled=32)}),
    },
)


def _flux2(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any]) -> Row:
    return Row({"transformer": ("Flux2Transformer2DModel", config), "vae": ("AutoencoderKLFlux2", vae), "scheduler": _SHIFTED}, call, {})


def _levels(widths: list[int]) -> dict[str, Any]:
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        **_NO_QUANT,
    }


def _heads(layers: int, heads: int, dim: int) -> dict[str, int]:
    return {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": dim}


FLUX_2 = Family(
    "flux.2-dev",
    "FLUX.2-dev, 32 B, text to image",
    "Flux2Pipeline",
    {
        "full": _flux2({}, {}, {**_IMAGE, **_embeds(512, 15360)}),
        "small": _flux2(
            {
                **_heads(4, 8, 32),
                "in_channels": 16,
                "num_single_layers": 8,
                "joint_attention_dim": 128,
                "axes_dims_rope": [8, 8, 8, 8],
            },
            _levels([32, 64]),
            {**_SMALL_IMAGE, **_embeds(64, 128)},
        ),
        "tiny": _flux2(
            {
                **_heads(2, 2, 16),
                "in_channels": 16,
                "num_single_layers": 2,
                "joint_attention_dim": 32,
                "axes_dims_rope": [4, 4, 4, 4],
                "timestep_guidance_channels": 32,
            },
            _levels([8, 8]),
            {**_TINY_IMAGE, **_embeds(8, 32)},
        ),
    },
)


def _qwen(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any], tokens: int, width: int) -> Row:
    masks = {"prompt_embeds_mask": f"1x{tokens}", "negative_prompt_embeds_mask": f"1x{tokens}"}
    parts = {"transformer": ("QwenImageTransformer2DModel", config), "vae": ("AutoencoderKLQwenImage", vae), "scheduler": _SHIFTED}
    return Row(parts, {**call, "true_cfg_scale": 4.0, **_embeds(tokens, width, guided=True), **masks}, {})


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
            {**_heads(6, 8, 32), "in_channels": 16, "out_channels": 4, "joint_attention_dim": 128, "axes_dims_rope": [8, 12, 12]},
            _qwen_vae(16),
            *(_SMALL_IMAGE, 32, 128),
        ),
        "tiny": _qwen(
            {**_heads(2, 2, 16), "in_channels": 16, "out_channels": 4, "joint_attention_dim": 16, "axes_dims_rope": [8, 4, 4]},
            _qwen_vae(8),
            *(_TINY_IMAGE, 8, 16),
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
        "full": _z_image({}, _kl(_WIDE, channels=16, layers=2, groups=32, **_FLUX_VAE), _IMAGE, 128, 2560),
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
            _kl([32, 64], channels=16, layers=1, groups=8, **_FLUX_VAE),
            *(_SMALL_IMAGE, 32, 128),
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
            _kl([8, 8], channels=16, layers=1, groups=4, **_FLUX_VAE),
            *(_TINY_IMAGE, 8, 16),
        ),
    },
)


def _wan(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any], tokens: int, width: int) -> Row:
    denoiser = ("WanTransformer3DModel", config)
    parts = {"transformer": denoiser, "transformer_2": denoiser, "vae": ("AutoencoderKLWan", vae), "scheduler": _UNIPC}
    return Row(parts, {**call, **_embeds(tokens, width, guided=True)}, {"boundary_ratio": 0.875})


_WAN_TINY_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
WAN_2_2 = Family(
    "wan2.2-t2v-a14b",
    "Wan 2.2 A14B, two denoisers of 14.3 B, text to video",
    "WanPipeline",
    {
        "full": _wan({}, {}, {"height": 720, "width": 1280, "num_frames": 81}, 512, 4096),
        "small": _wan(
            {**_heads(4, 8, 32), "text_dim": 128, "freq_dim": 64, "ffn_dim": 512},
            {**_WAN_TINY_VAE, "base_dim": 16},
            *({"height": 64, "width": 96, "num_frames": 9}, 32, 128),
        ),
        "tiny": _wan(
            {**_heads(2, 2, 12), "text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32},
            _WAN_TINY_VAE,
            *({"height": 16, "width": 32, "num_frames": 9}, 8, 32),
        ),
    },
)


def _ltx(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any], tokens: int, width: int) -> Row:
    masks = {"prompt_attention_mask": f"1x{tokens}", "negative_prompt_attention_mask": f"1x{tokens}"}
    parts = {"transformer": ("LTXVideoTransformer3DModel", config), "vae": ("AutoencoderKLLTXVideo", vae), "scheduler": _SHIFTED}
    return Row(parts, {**call, **_embeds(tokens, width, guided=True), **masks}, {})


def _ltx_vae(width: int) -> dict[str, Any]:
    sizes = {"block_out_channels": [width] * 4, "decoder_block_out_channels": [width] * 4, "latent_channels": 8}
    layers = {"layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "decoder_inject_noise": [False] * 5}
    scaling = {"spatio_temporal_scaling": [True, True, False, False], "decoder_spatio_temporal_scaling": [True, True, False, False]}
    return {**sizes, **layers, **scaling, "upsample_residual": [False] * 4, "upsample_factor": [1] * 4, "patch_size": 1, "patch_size_t": 1}


LTX = Family(
    "ltx-video",
    "LTX-Video, 1.9 B, text to video",
    "LTXPipeline",
    {
        "full": _ltx({}, {}, {"height": 512, "width": 704, "num_frames": 161}, 128, 4096),
        "small": _ltx(
            {**_heads(4, 8, 32), "in_channels": 8, "out_channels": 8, "cross_attention_dim": 256, "caption_channels": 128},
            _ltx_vae(16),
            *({"height": 64, "width": 96, "num_frames": 9}, 32, 128),
        ),
        "tiny": _ltx(
            {**_heads(2, 4, 8), "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32},
            _ltx_vae(8),
            *({"height": 32, "width": 64, "num_frames": 9}, 8, 32),
        ),
    },
)


def _sd35(config: Mapping[str, Any], vae: Part, call: Mapping[str, Any], tokens: int, width: int, pooled: int) -> Row:
    transformer = ("SD3Transformer2DModel", {"qk_norm": "rms_norm", **config})
    parts = {"transformer": transformer, "vae": vae, "scheduler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})}
    return Row(parts, {**call, **_embeds(tokens, width, guided=True, pooled=pooled)}, {})


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
            {**_heads(38, 38, 64), **_joint(4096, 2432, 2048, 16), "pos_embed_max_size": 192},
            _kl(_WIDE, channels=16, layers=2, groups=32, **_SD3_VAE),
            *(_IMAGE, 333, 4096, 2048),
        ),
        "small": _sd35(
            {**_heads(6, 8, 32), **_joint(128, 256, 64, 4), "sample_size": 32, "pos_embed_max_size": 64},
            _kl([32, 64], channels=4, layers=1, groups=8, **_SD3_VAE),
            *(_SMALL_IMAGE, 32, 128, 64),
        ),
        "tiny": _sd35(
            {**_heads(3, 4, 8), **_joint(32, 32, 64, 4), "sample_size": 32, "pos_embed_max_size": 32},
            _kl([8, 8], channels=4, layers=1, groups=4, **_SD3_VAE),
            *(_TINY_IMAGE, 8, 32, 64),
        ),
    },
)

FAMILIES: dict[str, Family] = {family.name: family for family in (FLUX_1, FLUX_2, QWEN_IMAGE, Z_IMAGE, WAN_2_2, LTX, SD_3_5)}
