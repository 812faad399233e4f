"""A module that caches what it computed would keep what it computed on fakes."""

from __future__ import annotations

import torch
from torch import nn

from aot.model.capture import fake_run
from aot.model.signature import Signature
from aot.model.twin import twin


class Table:
    """Rotary angles, computed at the first call, on an object that is no module."""

    angles: torch.Tensor | None = None

    def of(self, length: int) -> torch.Tensor:
        if self.angles is None:
            self.angles = torch.arange(64.0).sin()
        return self.angles[:length]


class Rotated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear, self.tied = Table(), nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied.weight = self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.linear(x)) * self.table.of(8)


def test_a_fake_run_leaves_no_fake_in_the_live_module() -> None:
    module, x = Rotated().eval(), torch.ones(2, 8)
    signature, tensors = Signature.of((x,), {})
    fake_run(module, signature, tensors, blocks=["linear"])
    assert module.table.angles is None
    assert not module.linear._forward_pre_hooks
    with torch.no_grad():
        assert torch.isfinite(module(x)).all()


def test_a_twin_has_the_same_weights_and_attributes_of_its_own() -> None:
    module = Rotated()
    copied = twin(module)
    assert [id(weight) for weight in copied.parameters()] == [id(weight) for weight in module.parameters()]
    assert copied.tied.weight is copied.linear.weight
    assert copied.table is not module.table
    copied.linear.weight = nn.Parameter(torch.zeros(8, 8))
    assert module.linear.weight.abs().sum() > 0
