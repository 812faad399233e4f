"""Hollow: a module without the memory of its weights. It is built from, and travels between processes, as the real one would not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TypeAlias, cast

import torch
from torch import nn

from aot.model.signature import TensorSpec
from aot.model.twin import twin
from aot.model.wrapped import is_packed, with_parts

_Replaced: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def hollow(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parameters have no memory; what is tied stays tied, and buffers and plain tensors keep their numbers."""
    found = twin(module)
    for child in found.modules():
        vars(child).pop("extra_repr", None)  # what it prints: torchao's is no function that another process could have
    replace_weights(found, _empty, lambda buffer: buffer.detach().cpu().clone(memory_format=torch.preserve_format))
    return found


def fill(module: nn.Module, device: str, made: Callable[[TensorSpec, int], torch.Tensor]) -> None:
    """Give every parameter of a hollow module memory on `device`, in place: what is `made` of its spec and its place among them."""
    places = count()
    replace_weights(
        module, lambda weight: made(replace(TensorSpec.of(weight), device=device), next(places)), lambda buffer: buffer.to(device)
    )


def _empty(weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")


def replace_weights(module: nn.Module, of_parameter: _Replaced, of_buffer: _Replaced) -> None:
    """Put others in the place of all weights; one that stands in several places is replaced by one."""
    replaced: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, weight in child._parameters.items():
            if weight is not None:
                if id(weight) not in replaced:
                    replaced[id(weight)] = _parameter(with_parts(weight, of_parameter), requires_grad=weight.requires_grad)
                child._parameters[name] = replaced[id(weight)]
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = with_parts(buffer, of_buffer)


def _parameter(tensor: torch.Tensor, *, requires_grad: bool) -> nn.Parameter:
    made = nn.Parameter(tensor, requires_grad=requires_grad)
    if is_packed(tensor) and not is_packed(made):  # a fake's note, which stays with the one that was given
        return cast(nn.Parameter, with_parts(tensor, lambda _: made))
    return made
