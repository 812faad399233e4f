"""Videos."""

from __future__ import annotations

from typing import Any

from tests.pipelines.parts import TOKENS, Made, ddim, flow, guided, mask, named, pil, random, without_text


def _wan_transformer(channels: int = 16, **more: Any) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
        **more,
    )


def _wan_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])


def _wan_call() -> dict[str, Any]:
    prompt = {"prompt_embeds": random(1, TOKENS, 32), "negative_prompt_embeds": random(1, TOKENS, 32).flip(0)}
    return {"height": 16, "width": 32, "num_frames": 9, "guidance_scale": 5.0, **prompt}


@named
def wan() -> Made:
    from diffusers import WanPipeline

    parts = {"transformer": _wan_transformer(), "vae": _wan_vae(), "scheduler": flow(shift=7.0)}
    return without_text(WanPipeline, **parts), _wan_call()


@named
def wan22() -> Made:
    """Two denoisers, one for the first steps and one for the others."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer(), "vae": _wan_vae(), "scheduler": scheduler}
    return without_text(WanPipeline, **parts, boundary_ratio=0.875), _wan_call()


def _image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    return CLIPVisionModel(CLIPVisionConfig(**config))


def _image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(crop_size=32, size=32)


@named
def wan_i2v() -> Made:
    from diffusers import WanImageToVideoPipeline

    transformer = _wan_transformer(36, image_dim=8)
    parts = {"transformer": transformer, "vae": _wan_vae(), "scheduler": flow(shift=7.0), "image_processor": _image_processor()}
    pipe = without_text(WanImageToVideoPipeline, image_encoder=_image_encoder(), **parts)
    return pipe, {"image": pil(16, 32), **_wan_call()}


@named
def ltx() -> Made:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=32,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
        patch_size_t=1,
    )
    pipe = without_text(LTXPipeline, transformer=transformer, vae=vae, scheduler=flow())
    prompt = guided({"prompt_embeds": random(1, TOKENS, 32), "prompt_attention_mask": mask()})
    return pipe, {"height": 32, "width": 64, "num_frames": 9, **prompt}


@named
def hunyuan_video() -> Made:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    pipe = without_text(HunyuanVideoPipeline, transformer=transformer, vae=vae, scheduler=flow(shift=7.0))
    prompt = {"prompt_embeds": random(1, TOKENS, 16), "pooled_prompt_embeds": random(1, 8), "prompt_attention_mask": mask(padding=2)}
    return pipe, {"height": 16, "width": 32, "num_frames": 9, **prompt}


@named
def cogvideox() -> Made:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline, CogVideoXTransformer3DModel

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=2,
        sample_width=4,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    pipe = without_text(CogVideoXPipeline, transformer=transformer, vae=vae, scheduler=ddim())
    prompt = {"prompt_embeds": random(1, TOKENS, 32), "negative_prompt_embeds": random(1, TOKENS, 32)}
    return pipe, {"height": 16, "width": 32, "num_frames": 9, **prompt}
