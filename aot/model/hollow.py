"""Hollow: a module without the memory of its weights. It is built from, and travels between processes, as the real one would not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from aot.model.signature import TensorSpec
from aot.model.twin import twin


def hollow(module: nn.Module) -> nn.Module:
    """A copy of `module` whose parameters have no memory; what is tied stays tied, and buffers and plain tensors keep their numbers."""
    found = twin(module)
    empty: dict[int, nn.Parameter] = {}
    for child in found.modules():
        for name, weight in child._parameters.items():
            if weight is not None:
                child._parameters[name] = empty.setdefault(id(weight), _empty(weight))
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.detach().cpu().clone(memory_format=torch.preserve_format)
    return found


def _empty(weight: torch.Tensor) -> nn.Parameter:
    there = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device="meta")
    return nn.Parameter(there, requires_grad=weight.requires_grad)


def fill(module: nn.Module, device: str, made: Callable[[TensorSpec, int], torch.Tensor]) -> None:
    """Give every parameter of a hollow module memory on `device`, in place: what is `made` of its spec and its place among them."""
    whole: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, weight in child._parameters.items():
            if weight is None:
                continue
            if id(weight) not in whole:
                spec = replace(TensorSpec.of(weight), device=device)
                whole[id(weight)] = nn.Parameter(made(spec, len(whole)), requires_grad=weight.requires_grad)
            child._parameters[name] = whole[id(weight)]
        for name, buffer in child._buffers.items():
            if buffer is not None:
                child._buffers[name] = buffer.to(device)
