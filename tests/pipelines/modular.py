"""Modular pipelines: their blocks but for those that encode text; the call names what it returns."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipelines import images
from tests.pipelines.parts import TOKENS, Made, flow, guided, mask, named, random


def _of(blocks: Any, *left_out: str, **parts: Any) -> Any:
    """The pipeline of these blocks, without the ones left out."""
    for name in left_out:
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    pipe.update_components(**parts)
    return pipe


@named
def flux_modular() -> Made:
    from diffusers import FluxAutoBlocks

    same, call = images.flux()
    parts = {"transformer": same.transformer, "vae": same.vae, "scheduler": same.scheduler}
    return _of(FluxAutoBlocks(), "text_encoder", **parts), {**call, "output": "images"}


@named
def flux3() -> Made:
    """Guided by `ClassifierFreeGuidance`: one batch for the prompt and one for the negative one."""
    from diffusers import Flux3AutoBlocks, Flux3Transformer2DModel

    transformer = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    parts = {"transformer": transformer, "vae": images.flux2()[0].vae, "scheduler": flow(shift=6.93)}
    pipe = _of(Flux3AutoBlocks(), "prompt_upsampler", "text_encoder", **parts)
    return pipe, {"height": 32, "width": 48, "output": "images", **guided({"prompt_embeds": random(1, TOKENS, 32)})}


def _ltx_transformer() -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        vae_scale_factors=(2, 4, 4),
        gated_attn=True,
        cross_attn_mod=True,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        audio_gated_attn=True,
        audio_cross_attn_mod=True,
        num_layers=2,
        rope_type="split",
        use_prompt_embeddings=False,
        perturbed_attn=True,
        ff_bias=False,
        use_prompt_adaln_single=False,
    )


def _ltx_connectors() -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    return LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_learnable_registers=TOKENS // 2,
        video_gated_attn=True,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_learnable_registers=TOKENS // 2,
        audio_gated_attn=True,
        rope_type="split",
        per_modality_projections=True,
        video_hidden_dim=32,
        audio_hidden_dim=16,
    )


def _ltx_vae() -> Any:
    from diffusers import AutoencoderKLLTX2Video

    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(True,),
        upsample_factor=(1,),
        patch_size=2,
    )


def _ltx_audio() -> dict[str, Any]:
    from diffusers import AutoencoderKLLTX2Audio
    from diffusers.pipelines.ltx2 import LTX2Vocoder

    vae = AutoencoderKLLTX2Audio(base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, resolution=32, latent_channels=4, mel_bins=8)
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3, 5],
        resnet_dilations=[[1, 3], [1, 3]],
    )
    return {"audio_vae": vae, "vocoder": vocoder}


@named
def ltx25() -> Made:
    """Video and audio, four passes a step; decoded by the convolutional VAE (the diffusion decoder takes a generator)."""
    from diffusers import LTX2Guidance, LTX25AutoBlocks
    from diffusers.modular_pipelines.ltx2.modular_blocks_ltx2 import LTX2AutoDecoderStep
    from transformers import PreTrainedTokenizerBase

    blocks = LTX25AutoBlocks()
    blocks.sub_blocks["text_encoder"].sub_blocks.pop("text_encoder")
    blocks.sub_blocks["decode"] = LTX2AutoDecoderStep()
    parts = {
        "transformer": _ltx_transformer(),
        "connectors": _ltx_connectors(),
        "tokenizer": PreTrainedTokenizerBase(padding_side="left"),
        "vae": _ltx_vae(),
        "scheduler": flow(),
        "guider": LTX2Guidance(
            guidance_scale=3.0, stg_scale=1.0, modality_scale=3.0, guidance_rescale=0.7, spatio_temporal_guidance_blocks=[1]
        ),
        **_ltx_audio(),
    }
    prompt = guided({"prompt_embeds": random(1, TOKENS, 32), "prompt_attention_mask": mask(padding=2)})
    call = {"height": 16, "width": 24, "num_frames": 5, "batch_size": 1, "dtype": torch.float32, "output": "videos", **prompt}
    return _of(blocks, "prompt_enhancer", "duration", **parts), call
