"""Videos of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aot.recipes.row import SHIFTED, UNIPC, Family, Row, embeds, heads


def _wan(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any], tokens: int, width: int) -> Row:
    denoiser = ("WanTransformer3DModel", config)
    parts = {"transformer": denoiser, "transformer_2": denoiser, "vae": ("AutoencoderKLWan", vae), "scheduler": UNIPC}
    return Row(parts, {**call, **embeds(tokens, width, guided=True)}, {"boundary_ratio": 0.875})


_WAN_TINY_VAE = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
WAN_2_2 = Family(
    "wan2.2-t2v-a14b",
    "Wan 2.2 A14B, two denoisers of 14.3 B, text to video",
    "WanPipeline",
    {
        "full": _wan({}, {}, {"height": 720, "width": 1280, "num_frames": 81}, 512, 4096),
        "small": _wan(
            {**heads(4, 8, 32), "text_dim": 128, "freq_dim": 64, "ffn_dim": 512},
            {**_WAN_TINY_VAE, "base_dim": 16},
            *({"height": 64, "width": 96, "num_frames": 9}, 32, 128),
        ),
        "tiny": _wan(
            {**heads(2, 2, 12), "text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "rope_max_seq_len": 32},
            _WAN_TINY_VAE,
            *({"height": 16, "width": 32, "num_frames": 9}, 8, 32),
        ),
    },
)


def _ltx(config: Mapping[str, Any], vae: Mapping[str, Any], call: Mapping[str, Any], tokens: int, width: int) -> Row:
    masks = {"prompt_attention_mask": f"1x{tokens}", "negative_prompt_attention_mask": f"1x{tokens}"}
    parts = {"transformer": ("LTXVideoTransformer3DModel", config), "vae": ("AutoencoderKLLTXVideo", vae), "scheduler": SHIFTED}
    return Row(parts, {**call, **embeds(tokens, width, guided=True), **masks}, {})


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
            {**heads(4, 8, 32), "in_channels": 8, "out_channels": 8, "cross_attention_dim": 256, "caption_channels": 128},
            _ltx_vae(16),
            *({"height": 64, "width": 96, "num_frames": 9}, 32, 128),
        ),
        "tiny": _ltx(
            {**heads(2, 4, 8), "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32},
            _ltx_vae(8),
            *({"height": 32, "width": 64, "num_frames": 9}, 8, 32),
        ),
    },
)
