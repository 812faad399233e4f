"""Memory format of a module's weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def to_channels_last(module: nn.Module) -> Callable[[nn.Module], None]:
    """Lay out the 4-d weights channels last, in place; return what undoes it.

    4-d only: the 5-d weights of a temporal VAE refuse the format, and `module.to(memory_format=…)` with them.
    """
    changed = [weight for weight in module.parameters() if weight.dim() == 4 and not _is_channels_last(weight)]
    _lay_out(changed, torch.channels_last)
    return lambda _: _lay_out(changed, torch.contiguous_format)


def _is_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _lay_out(weights: list[nn.Parameter], memory_format: torch.memory_format) -> None:
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=memory_format)
