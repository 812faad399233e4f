"""Slots: room in a graph for low-rank adapters (LoRA): y = Wx + b + B(Ax), with A and B as inputs beside the weights.

Whatever adapters are loaded, weighted, disabled or swapped is then the content of two tensors a layer: [A1; A2; …] and
[s1 B1, s2 B2, …], with zeros for the ranks that nobody uses. No class of peft is in a graph or a fingerprint: of a layer that has a
slot, or that peft was put around, the fingerprint says what the layer itself is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from aot.errors import BadInput
from aot.model.signature import TensorSpec
from aot.model.twin import twin

SLOTS = ("slot_a", "slot_b")
Slotted: TypeAlias = Sequence[tuple[str, TensorSpec]]  # by name, A and B of each layer in turn


class _Slotted(nn.Module):
    """`slot_a` [rank, in], `slot_b` [out, rank], beside what a linear layer computes."""

    slot_a: torch.Tensor
    slot_b: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(nn.functional.linear(input, self.slot_a), self.slot_b)
        own: torch.Tensor = super().forward(input)
        return own + low


class SlottedLinear(_Slotted, nn.Linear):
    """Of torch's own."""


class SlottedConv2d(nn.Conv2d):
    """`slot_a` [rank, in, height, width] of the layer's own kernel, `slot_b` [out, rank, 1, 1]."""

    slot_a: torch.Tensor
    slot_b: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        low = nn.functional.conv2d(input, self.slot_a, stride=self.stride, padding=self.padding)
        return super().forward(input) + nn.functional.conv2d(low, self.slot_b)


_SLOTTED: dict[type, Any] = {nn.Linear: SlottedLinear, nn.Conv2d: SlottedConv2d}
_PLAIN: dict[type, type] = {slotted: plain for plain, slotted in _SLOTTED.items()}
_GGUF = ("diffusers.quantizers.gguf.utils", "GGUFLinear")


def _is_gguf(kind: type) -> bool:
    return (kind.__module__, kind.__qualname__) == _GGUF


def _slotted(kind: type) -> Any:
    """That class with a slot. GGUF's is made when one is met: its module needs a package that not everybody has."""
    if kind not in _SLOTTED and _is_gguf(kind):
        made = type(f"Slotted{kind.__name__}", (_Slotted, kind), {"__module__": __name__})
        _SLOTTED[kind], _PLAIN[made] = made, kind
    return _SLOTTED[kind]


def plain_class(kind: type) -> type:
    """Without a slot."""
    return _PLAIN.get(kind, kind)


def is_slotted(module: nn.Module) -> bool:
    return type(module) in _PLAIN


def is_slot(name: str) -> bool:
    """Whether a weight of that name is one tensor of a slot."""
    return name.rpartition(".")[2] in SLOTS


def slot_specs(layer: Any, rank: int) -> tuple[TensorSpec, TensorSpec] | None:
    """The tensors A and B of a layer's slot; None for a layer that can have none."""
    a: tuple[int, ...]
    b: tuple[int, ...]
    if type(layer) is nn.Linear or _is_gguf(type(layer)):
        a, b = (rank, layer.in_features), (layer.out_features, rank)
    elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros":
        a, b = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
    else:
        return None
    computed: torch.dtype = layer.compute_dtype if _is_gguf(type(layer)) else layer.weight.dtype
    if not computed.is_floating_point or computed.itemsize < 2:  # stored so, and cast at each call: of no dtype to compute in
        return None
    dtype, device = str(computed).removeprefix("torch."), layer.weight.device.type
    of_a, of_b = (TensorSpec(shape, torch.empty(shape, device="meta").stride(), dtype, device) for shape in (a, b))
    return of_a, of_b


def targets(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The paths of the layers that get a slot: those that a pattern names, or without any every linear layer and 1x1 convolution
    within a list of blocks.

    A pattern is the end of a path (`to_q`, `ff.net.2`), with `*` for any part of it, or `all`. Numbers in it stand for any number: blocks
    that are alike share a graph. Raises BadInput for a pattern that names no layer that could have a slot.
    """
    could = [path for path, layer in module.named_modules() if slot_specs(layer, 1) is not None]
    if not patterns:
        return [path for path in could if re.search(r"(^|\.)\d+\.", path) and _is_pointwise(module.get_submodule(path))]
    found: dict[str, None] = {}
    for pattern in patterns:
        one = _pattern(pattern)
        named = could if pattern == "all" else [path for path in could if one.match(path)]
        if not named:
            raise BadInput(
                f"--lora-targets {pattern!r} names no linear layer or convolution of a {type(module).__name__}.",
                remedy="give the ends of their paths, as to_q,to_k,to_v,to_out.0, or leave it out: all within blocks.",
            )
        found |= dict.fromkeys(named)
    return [path for path in could if path in found]


def _pattern(text: str) -> re.Pattern[str]:
    parts = (".*".join(map(re.escape, part.split("*"))) for part in re.split(r"\d+", text))
    return re.compile(r"(?:.*\.)?" + r"\d+".join(parts) + "$")


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def put_slots(module: nn.Module, rank: int, patterns: Sequence[str], made: Callable[[TensorSpec, int], torch.Tensor]) -> list[str]:
    """Give layers of `module` slots, in place, of tensors that `made` makes of their specs and places. Returns their paths."""
    paths = targets(module, patterns)
    for place, path in enumerate(paths):
        layer = module.get_submodule(path)
        specs = slot_specs(layer, rank)
        assert specs is not None
        _put(layer, [made(spec, 2 * place + number) for number, spec in enumerate(specs)])
    return paths


def slotted_twin(module: nn.Module, slots: Slotted) -> nn.Module:
    """A twin of `module` with these slots, of zeros."""
    copy = twin(module)
    for (name, a), (_, b) in zip(slots[::2], slots[1::2], strict=True):
        _put(copy.get_submodule(name.rpartition(".")[0]), [a.zeros(), b.zeros()])
    return copy


def _put(layer: nn.Module, tensors: list[torch.Tensor]) -> None:
    layer.__class__ = _slotted(type(layer))
    for name, tensor in zip(SLOTS, tensors, strict=True):
        layer.register_buffer(name, tensor, persistent=False)


def adapter_class() -> type | None:
    """That of peft's layers for LoRA; None in a process that has not imported it, and so has none."""
    found: type | None = getattr(sys.modules.get("peft.tuners.lora.layer"), "LoraLayer", None)
    return found


def is_adapter(module: Any) -> bool:
    kind = adapter_class()
    return kind is not None and isinstance(module, kind)


def beneath(module: nn.Module) -> nn.Module:
    """The layer that adapters were put around; the module itself where there are none."""
    while is_adapter(module):
        module = module.base_layer  # type: ignore[assignment]
    return module


def has_adapters(module: nn.Module) -> bool:
    return adapter_class() is not None and any(map(is_adapter, module.modules()))


def adapters(module: nn.Module) -> dict[str, Any]:
    """peft's layers in `module`, by the path of the layer that each was put around."""
    return {path: layer for path, layer in _walk(module, "", set()) if is_adapter(layer)}


def beneath_all(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`module.named_modules()` as it was before adapters were put into it."""
    return ((path, found) for path, found in _walk(module, "", set()) if not is_adapter(found))


def _walk(module: nn.Module, path: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield path, module
    if is_adapter(module):
        yield from _walk(module.base_layer, path, seen)  # type: ignore[arg-type]
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{path}.{name}".lstrip("."), seen)
