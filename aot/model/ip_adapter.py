"""IP-Adapter: its scale as a tensor that a compiled graph reads at every call, changed in place by diffusers' own method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, SupportsIndex

import torch
from torch import nn

from aot.errors import BadInput


class ScaledLinear(nn.Linear):
    """An adapter's value projection, its output multiplied by the scale.

    Attention is linear in its values: scaling them scales what the adapter adds, which is where diffusers multiplies. There
    a float becomes a constant of the graph, and a tensor trips the `scale == 0` before it.
    """

    scale: torch.Tensor  # 0-d float32: in a half-precision product it changes no dtype

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.scale


class LiveScales(list[Any]):
    """The `scale` of an attention processor: reads 1.0 for each adapter, and passes on what is assigned to it."""

    live = ("own",)  # not to be described: the scales themselves are inputs of a graph

    def __init__(self, values: list[ScaledLinear]) -> None:
        super().__init__([1.0] * len(values))
        self.values = values
        self.own = [linear.scale for linear in values]

    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None:
        """A number is written into the adapter's scale; a tensor becomes the scale, so that changing it in place is seen.

        Raises BadInput for a tensor that a graph could not read as it is.
        """
        if isinstance(index, slice):
            for place, item in zip(range(*index.indices(len(self))), value, strict=True):
                self[place] = item
            return
        linear = self.values[index]
        if not isinstance(value, torch.Tensor):
            if linear.scale is not self.own[index]:  # a tensor of the user's, or the model was moved
                self.own[index] = linear.scale = torch.empty_like(linear.scale)
            linear.scale.fill_(float(value))
            return
        if value.numel() != 1 or value.dtype != torch.float32 or value.device != linear.weight.device:
            raise BadInput(
                f"the IP-Adapter scale is a tensor of {value.dtype} {list(value.shape)} on {value.device}.",
                remedy=f"give a float, or one number of torch.float32 on {linear.weight.device}: a graph reads it in place.",
            )
        linear.scale = value.detach().reshape(())

    def current(self) -> list[float]:
        """The scales in force."""
        return [float(linear.scale) for linear in self.values]


def live_scale(module: nn.Module) -> Callable[[nn.Module], None] | None:
    """Make the scales of `module`'s IP-Adapters live, in place; return what undoes it, or None where there is none to make so."""
    changed = [processor for processor in adapters(module) if not isinstance(processor.scale, LiveScales)]
    for processor in changed:
        scales, values = list(processor.scale), list(processor.to_v_ip)
        for linear in values:
            linear.__class__ = ScaledLinear  # keeps the weights and their names; a wrapper would rename them in checkpoints
            linear.register_buffer("scale", torch.ones((), device=linear.weight.device), persistent=False)
        processor.scale = LiveScales(values)
        processor.scale[:] = scales
    return _undo if changed else None


def adapters(module: nn.Module) -> Iterator[Any]:
    """The IP-Adapter attention processors in `module`."""
    return (child for child in module.modules() if hasattr(child, "to_v_ip") and hasattr(child, "scale"))


def _undo(module: nn.Module) -> None:
    for processor in adapters(module):
        if isinstance(processor.scale, LiveScales):
            processor.scale = processor.scale.current()
        for linear in processor.to_v_ip:
            if isinstance(linear, ScaledLinear):
                del linear.scale
                linear.__class__ = nn.Linear  # type: ignore[assignment]
