"""A table that a model makes at its first call: the artifact serves it before and after, and no other table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import aot
from aot.artifact.certificate import compare
from aot.model.fingerprint import Fingerprint


class Tabled(nn.Module):
    """Keeps its rotary table where no one would call it a weight, as Z-Image does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.table, self.seen = nn.Linear(8, 8), None, {}
        self.table: torch.Tensor | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is None:
            self.table = torch.arange(8, dtype=torch.float32).cos()
        return self.inner(x) * self.table


@pytest.mark.compiles
def test_what_the_first_call_leaves_is_known_and_another_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model, x = Tabled().eval().requires_grad_(False), torch.ones(2, 8)
    fresh = Fingerprint.of(model)
    aot.build(model, lambda model: model(x), gpu="cpu")
    assert model.table is None, "a build leaves the live model as it is"
    with torch.no_grad():
        expected = model(x)
    settled = Fingerprint.of(model)
    assert settled != fresh
    assert settled.stem == fresh.stem

    def misses(table: torch.Tensor | None) -> list[str]:
        model.table = table
        aot.compile(model, on_miss="eager")
        try:
            with torch.no_grad():
                assert compare(model(x), expected if table is None or bool((table < 2).all()) else expected * 3).relative_l2 <= 1e-5
            return list(aot.stats()[0]["misses"])
        finally:
            aot.restore(model)

    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    right = torch.arange(8, dtype=torch.float32).cos()
    assert misses(None) == []
    assert misses(right) == []
    (miss,) = misses(right * 3)[:1]
    assert "has table=tensor(" in miss
