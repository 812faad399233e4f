"""Fusion of the attention projections: one matmul for query, key and value, without keeping both copies of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from aot.errors import Unsupported
from aot.model.ip_adapter import adapters

# the fused projection of diffusers' Attention, and those it is made of, in the order of their rows
_FUSED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}


@dataclass(slots=True)
class _Parts:
    """What an attention was before its projections were fused: its children in order, and which of the parts were training."""

    order: list[str]
    training: dict[str, bool]
    saving: torch.utils.hooks.RemovableHandle


# by attention, and not in its own attributes, which a fingerprint describes
_parts: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()
_KEPT = "original_attn_processors"  # by diffusers, on the model, and left there


def fuse_qkv(module: nn.Module) -> Callable[[nn.Module], None] | None:
    """Fuse the projections of `module` in place and return what undoes it; None where it has none that diffusers can fuse.

    diffusers keeps the separate projections beside the fused one: they are removed here, and the state dict goes on showing
    them, so that saving writes a checkpoint that loads anywhere. Raises Unsupported where diffusers refuses.
    """
    fuse = getattr(module, "fuse_qkv_projections", None)
    if fuse is None or any(_has(child, fused) for child in module.modules() for fused in _FUSED):
        return None
    orders = {child: list(child._modules) for child in module.modules()}
    try:
        if any(adapters(module)):
            _fuse_beside_adapters(module)
        else:
            fuse()
    except ValueError as error:
        raise Unsupported(f"fuse_qkv_projections: {error}", remedy="leave it out.") from error
    for child in module.modules():
        fused = [name for name in _FUSED if _has(child, name)]
        parts = {part: getattr(child, part).training for name in fused for part in _FUSED[name]}
        for name in parts:
            delattr(child, name)
        for name in fused:
            getattr(child, name).train(child.training)
        if parts:
            saving = child.register_state_dict_post_hook(_separate)  # type: ignore[no-untyped-call]
            _parts[child] = _Parts(orders[child], parts, saving)
    return split_qkv


def _fuse_beside_adapters(module: Any) -> None:
    """Fuse the attentions that no IP-Adapter hangs on; diffusers' own method would replace the adapter's processors."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0

    module.original_attn_processors = module.attn_processors
    for child in module.modules():
        if isinstance(child, Attention) and isinstance(child.processor, AttnProcessor2_0):
            child.fuse_projections(fuse=True)
            child.set_processor(FusedAttnProcessor2_0())


def split_qkv(module: nn.Module) -> None:
    """Undo `fuse_qkv`: the separate projections again where they were, as views of the fused weights."""
    for child in module.modules():
        before = _parts.pop(child, None)
        if before:
            before.saving.remove()
        for fused, names in _FUSED.items():
            if _has(child, fused):
                _split(child, fused, names)
        if before:
            for name, training in before.training.items():
                getattr(child, name).train(training)
            for name in [*before.order, *(name for name in child._modules if name not in before.order)]:
                if name in child._modules:
                    child._modules[name] = child._modules.pop(name)
    module.unfuse_qkv_projections()  # type: ignore[operator]
    vars(module).pop(_KEPT, None)


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Linear)


def _split(attention: nn.Module, fused: str, names: tuple[str, ...]) -> None:
    whole: nn.Linear = getattr(attention, fused)
    for name, rows in zip(names, _rows(attention, names, whole.out_features), strict=True):
        part = nn.Linear(whole.in_features, rows.stop - rows.start, bias=whole.bias is not None, device="meta")
        part.weight = nn.Parameter(whole.weight.data[rows], requires_grad=whole.weight.requires_grad)
        if whole.bias is not None:
            part.bias = nn.Parameter(whole.bias.data[rows], requires_grad=whole.bias.requires_grad)
        setattr(attention, name, part.train(whole.training))
    delattr(attention, fused)
    attention.fused_projections = False  # type: ignore[assignment]


def _rows(attention: Any, names: tuple[str, ...], total: int) -> list[slice]:
    """The rows of each projection: key and value are as wide as each other, the query may be wider (grouped heads)."""
    key = attention.inner_kv_dim
    sizes = [total - key * (len(names) - 1), key, key] if len(names) == 3 else [key, key]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _separate(attention: nn.Module, state: dict[str, torch.Tensor], prefix: str, _metadata: Any) -> None:
    """Show the separate projections in a state dict, in place of the fused ones."""
    for fused, names in _FUSED.items():
        for parameter in ("weight", "bias"):
            whole = state.pop(f"{prefix}{fused}.{parameter}", None)
            if whole is not None:
                for name, rows in zip(names, _rows(attention, names, whole.shape[0]), strict=True):
                    state[f"{prefix}{name}.{parameter}"] = whole[rows].clone()
