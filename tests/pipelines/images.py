"""Images, by transformers."""

from __future__ import annotations

from typing import Any

import torch

from tests.pipelines.parts import TOKENS, Made, embedded, flow, guided, image, kl, mask, named, random, without_text


def _flux_parts(*, guidance: bool = True) -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return {"transformer": transformer, "vae": kl(4, quant=False, shift_factor=0.06, scaling_factor=1.5), "scheduler": flow()}


_FLUX_PROMPT = {"prompt_embeds": (1, TOKENS, 32), "pooled_prompt_embeds": (1, 32)}


@named
def flux() -> Made:
    from diffusers import FluxPipeline

    return without_text(FluxPipeline, **_flux_parts()), {"height": 32, "width": 48, **embedded(_FLUX_PROMPT)}


@named
def flux_img2img() -> Made:
    from diffusers import FluxImg2ImgPipeline

    call = {"image": image(32, 48), "height": 32, "width": 48, "strength": 1.0}
    return without_text(FluxImg2ImgPipeline, **_flux_parts()), {**call, **embedded(_FLUX_PROMPT)}


@named
def flux_kontext() -> Made:
    from diffusers import FluxKontextPipeline

    call = {"image": image(32, 48), "height": 32, "width": 48, "max_area": 32 * 48, "_auto_resize": False}
    return without_text(FluxKontextPipeline, **_flux_parts()), {**call, **embedded(_FLUX_PROMPT)}


@named
def flux2() -> Made:
    from diffusers import AutoencoderKLFlux2, Flux2Pipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = without_text(Flux2Pipeline, transformer=transformer, vae=vae, scheduler=flow())
    return pipe, {"height": 32, "width": 48, "prompt_embeds": random(1, TOKENS, 32)}


def _qwen_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@named
def qwen_image() -> Made:
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    pipe = without_text(QwenImagePipeline, transformer=transformer, vae=_qwen_vae(), scheduler=flow())
    prompt = guided({"prompt_embeds": random(1, TOKENS, 16), "prompt_embeds_mask": mask(padding=2)})
    return pipe, {"height": 32, "width": 48, "true_cfg_scale": 4.0, **prompt}


@named
def sd3() -> Made:
    """The shape of 3.5 medium: queries and keys normalised, a second attention in the first block."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=48,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    parts = {"transformer": transformer, "vae": kl(4, quant=False, shift_factor=0.06, scaling_factor=1.5), "scheduler": flow()}
    pipe = without_text(StableDiffusion3Pipeline, "image_encoder", "feature_extractor", **parts)
    prompt = guided(embedded({"prompt_embeds": (1, TOKENS, 32), "pooled_prompt_embeds": (1, 64)}))
    return pipe, {"height": 32, "width": 48, **prompt}


@named
def z_image() -> Made:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        rope_theta=256.0,
        t_scale=1000.0,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 64, 64],
    )
    vae = kl(16, scaling_factor=0.36, shift_factor=0.12)
    pipe = without_text(ZImagePipeline, transformer=transformer, vae=vae, scheduler=flow())
    prompt = {"prompt_embeds": [random(TOKENS, 16)], "negative_prompt_embeds": [random(TOKENS - 2, 16)]}
    return pipe, {"height": 32, "width": 48, "guidance_scale": 3.0, **prompt}


@named
def chroma() -> Made:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    parts = {"transformer": transformer, "vae": kl(4, quant=False, shift_factor=0.06, scaling_factor=1.5), "scheduler": flow()}
    prompt = guided({"prompt_embeds": random(1, TOKENS, 32), "prompt_attention_mask": mask(torch.bool)})
    return without_text(ChromaPipeline, **parts), {"height": 32, "width": 48, **prompt}


@named
def lumina2() -> Made:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    vae = kl(4, levels=4, quant=False, shift_factor=0.06, scaling_factor=1.5)
    parts = {"transformer": transformer, "vae": vae, "scheduler": flow()}
    prompt = guided({"prompt_embeds": random(1, TOKENS, 16), "prompt_attention_mask": mask()})
    return without_text(Lumina2Pipeline, **parts), {"height": 32, "width": 48, **prompt}


@named
def sana() -> Made:
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=32,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    pipe = without_text(SanaPipeline, transformer=transformer, vae=vae, scheduler=flow(shift=7.0))
    prompt = guided({"prompt_embeds": random(1, TOKENS, 8), "prompt_attention_mask": mask()})
    more = {"use_resolution_binning": False, "complex_human_instruction": None, "negative_prompt": None}
    return pipe, {"height": 64, "width": 96, **more, **prompt}
