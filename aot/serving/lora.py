"""LoRA: whether an adapter has room in what is loaded, from the names and shapes in its file, before any weight of it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from aot.errors import BadInput
from aot.model.signature import TensorSpec
from aot.model.slots import adapters, beneath_all
from aot.serving.dispatch import Dispatcher, dispatchers

_FILE = "pytorch_lora_weights.safetensors"
_FEW = 64  # numbers: an adapter's factors, which its conversion reads, and no weight
Contract: TypeAlias = Mapping[str, tuple[TensorSpec, TensorSpec]]  # by layer, A and B of its slot


class Verdict(StrEnum):
    """What loading an adapter comes to."""

    FITS = "fits"  # it is served by the graphs that are loaded
    REBUILD = "needs a rebuild"  # every call is a miss while it is active: build with more room, or fuse it
    IGNORED = "would be ignored"  # diffusers loads it, and it changes nothing


@dataclass(frozen=True, slots=True)
class Fit:
    """Of one component: the verdict, and why; `rank` is the adapter's largest."""

    component: str
    verdict: Verdict
    why: str = ""
    rank: int = 0

    def __str__(self) -> str:
        return f"{self.component}: {self.verdict}" + f" ({self.why})" * bool(self.why)


def check_lora(pipe: Any, adapter: str | Path | Mapping[str, torch.Tensor]) -> list[Fit]:
    """Whether a LoRA has room in the graphs that are loaded into a pipeline, a verdict for each component that it is for.

    `adapter` is a safetensors file, a folder with one as diffusers saves it, or what is in one; of a file only names and shapes are
    read. What is active in the pipeline already counts: all that are active together share a layer's slot. Nothing is loaded or
    changed. Raises BadInput for what is no adapter, or none of this pipeline's.
    """
    state = _converted(pipe, _described(adapter))
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        component, _, rest = name.partition(".")
        parts.setdefault(component, {})[rest] = tuple(tensor.shape)
    return [_fit(name, getattr(pipe, name, None), shapes) for name, shapes in sorted(parts.items())]


def _fit(name: str, module: Any, shapes: dict[str, tuple[int, ...]]) -> Fit:
    if not isinstance(module, nn.Module):
        return Fit(name, Verdict.IGNORED, "the pipeline has no such component")
    served = dispatchers(module)
    layers = sorted({path for key in shapes if (path := _layer(key))})
    beneath = dict(beneath_all(module))
    if not layers or not any(path in beneath for path in layers):
        return Fit(name, Verdict.IGNORED, f"none of its {len(layers) or len(shapes)} layers is in the model")
    ranks = {path: shapes[key][0] for path in layers if (key := f"{path}.lora_A.weight") in shapes}
    rank = max(ranks.values(), default=0)
    if not served:
        return Fit(name, Verdict.FITS, "no graph is loaded for it: it runs as it does without", rank)
    inside = [path for path in layers if path in beneath and any(path.startswith(f"{block}.") or not block for block in served)]
    why = next(_lacks(inside, shapes, ranks, _contract(served), _active(module)), "")
    return Fit(name, Verdict.REBUILD if why else Verdict.FITS, why, rank)


def _lacks(
    layers: list[str], shapes: dict[str, tuple[int, ...]], ranks: dict[str, int], slots: Contract, active: dict[str, int]
) -> Iterator[str]:
    """What stands in the way, the most first."""
    if odd := next((key for key in sorted(shapes) if _layer(key) and not key.endswith(_PLAIN)), None):
        yield f"{odd} is of no plain LoRA: fuse it"
    if homeless := [path for path in layers if path not in slots]:
        yield f"{len(homeless)} layers have no slot, the first is {homeless[0]}: build with --lora-targets, or fuse it"
    for path in layers:
        a, b = slots[path]
        built, asked = a.shape[0], ranks.get(path, 0) + active.get(path, 0)
        if asked > built:
            beside = f", {active[path]} of it active already" if active.get(path) else ""
            yield f"rank {asked} at {path}{beside}, built for {built}: build with --lora-rank {asked}, or fuse it"
        for key, spec in ((f"{path}.lora_A.weight", a), (f"{path}.lora_B.weight", b)):
            found, place = shapes.get(key), 1 if spec is a else 0
            if found and (found[place] != spec.shape[place] or found[2:] != spec.shape[2:]):
                yield f"{key} is {list(found)}, the layer takes {list(spec.shape)} of rank {built}: it is of another model"


def _contract(served: Mapping[str, Dispatcher]) -> Contract:
    """The slots that the graphs of a component's dispatchers have, by layer."""
    found: dict[str, tuple[TensorSpec, TensorSpec]] = {}
    for where, dispatcher in served.items():
        for slots in dispatcher.slotted():
            pairs = zip(slots[::2], slots[1::2], strict=True)
            found |= {f"{where}.{name.rpartition('.')[0]}".lstrip("."): (a, b) for (name, a), (_, b) in pairs}
    return found


def _active(module: nn.Module) -> dict[str, int]:
    """The ranks that are in use, by layer."""
    return {
        path: sum(layer.lora_A[name].weight.shape[0] for name in layer.active_adapters if name in layer.lora_A)
        for path, layer in adapters(module).items()
        if not layer.disable_adapters
    }


_PLAIN = (".lora_A.weight", ".lora_B.weight", ".alpha")
_MARKS = (".lora_", ".alpha", ".dora_scale", ".lokr_", ".hada_", ".diff", ".oft_")


def _layer(key: str) -> str:
    """The path of the layer that a tensor of an adapter is for; empty where it is none of an adapter's."""
    place = min((key.find(mark) for mark in _MARKS if mark in key), default=-1)
    return key[:place] if place > 0 else ""


def _described(adapter: str | Path | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by name, without data but for the few numbers that a conversion reads. Raises BadInput."""
    if isinstance(adapter, Mapping):
        return {name: tensor if tensor.numel() <= _FEW else tensor.to("meta") for name, tensor in adapter.items()}
    from safetensors import SafetensorError, safe_open

    path = Path(adapter) / _FILE if Path(adapter).is_dir() else Path(adapter)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict
            few = {name: file.get_tensor(name) for name, shape in shapes.items() if torch.Size(shape).numel() <= _FEW}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be read as an adapter: {error}", remedy="name a .safetensors file, or a folder with one.") from error
    return {name: few[name] if name in few else torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _converted(pipe: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By diffusers' own names, which the pipeline's class makes of those of other programs. Raises BadInput."""
    if not hasattr(pipe, "lora_state_dict"):
        raise BadInput(f"a {type(pipe).__name__} takes no LoRAs.", remedy="give the pipeline that loads it.")
    try:
        found = pipe.lora_state_dict(dict(state))
    except Exception as error:
        raise BadInput(
            f"a {type(pipe).__name__} cannot read the adapter: {type(error).__name__}: {error}", remedy="give one of its own model."
        ) from error
    from diffusers.utils import convert_unet_state_dict_to_peft

    converted: dict[str, torch.Tensor] = convert_unet_state_dict_to_peft(found[0] if isinstance(found, tuple) else found)
    if not any(map(_layer, converted)):
        raise BadInput("there is no LoRA in it.", remedy="name a file that holds one.")
    return converted
