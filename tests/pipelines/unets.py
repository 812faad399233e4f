"""UNets."""

from __future__ import annotations

from typing import Any

from tests.pipelines.parts import TOKENS, Made, ddim, embedded, guided, image, kl, named, random, without_text


def _sd15_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def _sd15_prompt() -> dict[str, Any]:
    return {"prompt_embeds": random(1, TOKENS, 32), "negative_prompt_embeds": random(1, TOKENS, 32), "guidance_scale": 7.5}


@named
def sd15_controlnet() -> Made:
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    controlnet = ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(8, 16),
        norm_num_groups=4,
    )
    parts = {"unet": _sd15_unet(), "controlnet": controlnet, "vae": kl(4), "scheduler": ddim()}
    none = ("safety_checker", "feature_extractor", "image_encoder")
    pipe = without_text(StableDiffusionControlNetPipeline, *none, requires_safety_checker=False, **parts)
    return pipe, {"image": image(32, 48), **_sd15_prompt()}


def _sdxl_parts(*, aesthetics: bool = False, channels: int = 4) -> dict[str, Any]:
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=(5 if aesthetics else 6) * 8 + 32,
        cross_attention_dim=32,
        norm_num_groups=4,
    )
    return {"unet": unet, "vae": kl(4), "scheduler": EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading")}


def _sdxl_prompt() -> dict[str, Any]:
    return guided(embedded({"prompt_embeds": (1, TOKENS, 32), "pooled_prompt_embeds": (1, 32)}))


@named
def sdxl_img2img() -> Made:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipe = without_text(StableDiffusionXLImg2ImgPipeline, "image_encoder", "feature_extractor", **_sdxl_parts())
    return pipe, {"image": image(32, 48), "strength": 1.0, **_sdxl_prompt()}


@named
def sdxl_refiner() -> Made:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    parts = _sdxl_parts(aesthetics=True)
    pipe = without_text(StableDiffusionXLImg2ImgPipeline, "image_encoder", "feature_extractor", requires_aesthetics_score=True, **parts)
    return pipe, {"image": random(1, 4, 16, 24), "strength": 1.0, **_sdxl_prompt()}


@named
def animatediff() -> Made:
    from diffusers import AnimateDiffPipeline, MotionAdapter

    adapter = MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    parts = {"unet": _sd15_unet(), "vae": kl(4), "scheduler": ddim(), "motion_adapter": adapter}
    pipe = without_text(AnimateDiffPipeline, "image_encoder", "feature_extractor", **parts)
    return pipe, {"height": 32, "width": 48, "num_frames": 4, "decode_chunk_size": 4, **_sd15_prompt()}
