"""One graph for calls that differ in sizes: compiled along axes, compared at their ends, served between them and not beyond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aot
from aot.artifact.certificate import compare


class Mixer(nn.Module):
    """Attends from pixels to a prompt. Above 40 pixels it adds a bias: a condition that tracing finds, and no test of sizes would."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.key, self.out = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        pixels = self.inner(image.flatten(2).transpose(1, 2))
        found = self.out(torch.softmax(pixels @ self.key(prompt).transpose(1, 2), -1) @ self.key(prompt))
        if image.shape[2] * image.shape[3] > 40:
            found = found + 1.0
        return found.transpose(1, 2).reshape(image.shape)


def _call(height: int, width: int, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 100 + width * 10 + tokens)
    return {
        "image": torch.randn(1, 4, height, width, generator=generator),
        "prompt": torch.randn(1, tokens, 6, generator=generator),
    }


@pytest.mark.compiles
def test_calls_of_several_sizes_are_one_graph_and_one_for_each_that_takes_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    model = Mixer().eval().requires_grad_(False)
    recorded = [_call(4, 6, 3), _call(5, 8, 7), _call(6, 3, 5), _call(7, 8, 4)]  # the last one is of 56 pixels
    with aot.record(model, name="mixer") as record, torch.no_grad():
        for call in recorded:
            model(**call)
    built = aot.build(record, gpu="cpu", axes=True)
    assert len(built.manifest.measured["compile_s"]) == 2
    plain = Mixer().eval().requires_grad_(False)
    plain.load_state_dict(model.state_dict())

    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    aot.compile(model, on_miss="eager")

    def ask(call: dict[str, Any]) -> bool:
        """Whether it was served; exact either way."""
        (ledger,) = aot.stats()
        before = sum(ledger["hits"].values())
        with torch.no_grad():
            assert compare(model(**call), plain(**call)).relative_l2 <= 1e-5
        return sum(aot.stats()[0]["hits"].values()) > before

    served = [(*map(int, call["image"].shape[2:]), call["prompt"].shape[1]) for call in recorded] + [(5, 5, 6), (4, 3, 3), (5, 7, 7)]
    assert [size for size in served if not ask(_call(*size))] == []
    beyond = [(6, 8, 5), (3, 6, 3), (5, 9, 3), (4, 6, 9), (1, 6, 3), (7, 8, 5)]
    assert [size for size in beyond if ask(_call(*size))] == []
    aot.restore(model)
    assert aot.build(record, gpu="cpu", axes=True).digest == built.digest


class Misled(nn.Module):
    """Computes otherwise where its sizes are left open, and no condition says so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found = self.inner(image)
        return found if isinstance(image.shape[2], int) else found + 1.0


@pytest.mark.compiles
def test_a_graph_that_is_wrong_at_a_recorded_size_gives_way_to_one_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    model, sizes = Misled().eval().requires_grad_(False), ((4, 6), (8, 5))
    with aot.record(model, name="misled") as record, torch.no_grad():
        for height, width in sizes:
            model(torch.ones(1, 4, height, width))
    built = aot.build(record, gpu="cpu", axes=True)
    assert "relative L2 error" in built.manifest.measured["apart"]["all that was left open"]
    assert len(built.manifest.measured["compile_s"]) == len(sizes)
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    plain = Misled().eval().requires_grad_(False)
    plain.load_state_dict(model.state_dict())
    aot.compile(model, on_miss="error")
    with torch.no_grad():
        for height, width in sizes:
            image = torch.randn(1, 4, height, width)
            assert compare(model(image), plain(image)).relative_l2 <= 1e-5
    aot.restore(model)
