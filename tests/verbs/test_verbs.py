"""The verbs in Python: record, plan, build, push; on another machine lookup, trust, enable; pull, verify, lock. No shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import aot
from aot.artifact.certificate import compare
from aot.cache_store.errors import Missing, Untrusted
from aot.cache_store.signing import SigningKey
from aot.errors import BadInput, Miss


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Pipe(SimpleNamespace):
    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.transformer(x)


def _pipe() -> Pipe:
    torch.manual_seed(0)
    return Pipe(transformer=Denoiser().eval())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, Any]]:
    """The home and store of a machine that builds, and what it built."""
    root = tmp_path_factory.mktemp("builder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AOT_HOME", str(root / "home"))
        with aot.record(_pipe(), name="toy") as record:
            pass
        with pytest.raises(BadInput, match="nothing was recorded"):
            aot.plan(record, gpu="cpu")
        pipe = _pipe()
        planned = aot.plan(pipe, lambda pipe: pipe(torch.ones(2, 8)), gpu="cpu", name="toy")
        assert (planned.graphs, planned.present) == (("transformer float32[2,8]",), None)
        artifact = aot.build(pipe, lambda pipe: pipe(torch.ones(2, 8)), gpu="cpu", name="toy")
        assert planned.ref == artifact.ref
        assert aot.plan(pipe, lambda pipe: pipe(torch.ones(2, 8)), gpu="cpu", name="toy").present == artifact.digest
        (pushed,) = aot.push(artifact, (root / "store").as_uri())
        assert pushed.digest == artifact.digest
        with pytest.raises(BadInput, match="--public"):
            aot.push(artifact, (root / "store").as_uri(), public=True)
        yield root, artifact, SigningKey.of_machine(root / "home").public


@pytest.mark.compiles
def test_another_machine_enables_what_was_pushed_once_it_trusts_its_key(
    built: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, artifact, key = built
    store = (root / "store").as_uri()
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NEXFORT_GRAPH_CACHE", raising=False)
    (offer,) = aot.lookup("toy", store)
    assert (offer.row.digest, offer.refused) == (artifact.digest, ())
    with pytest.raises(Missing, match="it has: toy"):
        aot.lookup("other", store)
    expected, pipe = _pipe()(torch.ones(2, 8)), _pipe()
    with pytest.raises(Untrusted):
        aot.enable(pipe, store, on_miss="error")
    assert "forward" not in vars(pipe.transformer)
    for _ in range(2):
        assert aot.enable(pipe, store, on_miss="error", trust=[str(key)]) is pipe
        assert compare(pipe(torch.ones(2, 8)), expected).relative_l2 <= 1e-5
    assert sum(aot.stats()[-1]["hits"].values()) == 1
    with pytest.raises(Miss):
        pipe(torch.ones(3, 8))
    aot.restore(pipe)
    assert aot.verify("toy").files > 0
    assert aot.verify("toy", execute=True).error == 0.0


@pytest.mark.compiles
def test_what_is_pulled_or_pinned_is_what_this_machine_would_load(
    built: tuple[Path, Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, artifact, _ = built
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AOT_LOCK", str(tmp_path / "aot.lock"))
    said: list[str] = []
    with pytest.raises(Untrusted):
        aot.pull("toy", (root / "store").as_uri(), say=said.append)
    assert said
    with pytest.raises(BadInput, match="pins nothing"):
        aot.pull()
    (pin,) = aot.lock("toy", (root / "store").as_uri(), say=said.append)
    assert pin.digest == artifact.digest
    (pulled,) = aot.pull()
    assert pulled.digest == artifact.digest
    with pytest.raises(Miss, match=r"none of the 1 artifacts of toy would be loaded there; the first: .*cuda"):
        aot.pull("toy", (root / "store").as_uri(), gpu="h200")
    with pytest.raises(BadInput, match="allow 'other-cpu' is unknown"):
        aot.pull("toy", (root / "store").as_uri(), allow=["other-cpu"])
