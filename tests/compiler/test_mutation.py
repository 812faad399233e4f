"""A program that writes to a tensor of its call is known, however it gets at it."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from aot.compiler.mutation import mutates


def _without_autocast(x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return x.add_(1)


class _Of(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(x, y)


def _found(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> bool:
    program = torch.export.export(_Of(function), (torch.ones(4, 6), torch.ones(4, 6)), strict=False)
    return mutates(program, program.graph_signature.user_inputs)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.add_(1),
        lambda x, y: x.view(6, 4).t().mul_(2) + 1,
        lambda x, y: x.chunk(2)[1].copy_(y[:2]) * 2,
        lambda x, y: torch.add(x, 1, out=y),
        lambda x, y: x.reshape(24)[3:].zero_() + 1,
        lambda x, y: torch.nn.functional.dropout(x, training=False).add_(1),
        lambda x, y: x.type_as(y).mul_(2),
        lambda x, y: _without_autocast(x),
    ],
)
def test_writing_to_an_input(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    assert _found(function)


@pytest.mark.parametrize(
    "function",
    [lambda x, y: (x + 1).add_(y), lambda x, y: x.clone().view(24).zero_() + y.sum(), lambda x, y: torch.relu_(x * y).t()],
)
def test_writing_to_what_was_computed(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    assert not _found(function)
