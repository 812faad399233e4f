"""Row: a pipeline of today as data: its classes, configs and one call. What is not written is the class' own default.

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


SHIFTED: Part = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
UNIPC: Part = ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0})
IMAGE = {"height": 1024, "width": 1024}
SMALL_IMAGE, TINY_IMAGE = {"height": 128, "width": 192}, {"height": 32, "width": 48}


def kl(widths: list[int], *, channels: int, layers: int, groups: int, **more: Any) -> Part:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * len(widths), "up_block_types": ["UpDecoderBlock2D"] * len(widths)}
    sizes = {"block_out_channels": widths, "latent_channels": channels, "layers_per_block": layers, "norm_num_groups": groups}
    return "AutoencoderKL", {**blocks, **sizes, **more}


NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}


def embeds(tokens: int, width: int, *, guided: bool = False, pooled: int = 0) -> dict[str, str]:
    found = {"prompt_embeds": f"1x{tokens}x{width}"} | ({"pooled_prompt_embeds": f"1x{pooled}"} if pooled else {})
    return found | ({f"negative_{name}": size for name, size in found.items()} if guided else {})


def heads(layers: int, heads: int, dim: int) -> dict[str, int]:
    return {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": dim}
