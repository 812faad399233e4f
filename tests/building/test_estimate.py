from pathlib import Path

import pytest

from aot.building.estimate import expected_seconds
from aot.cache_store.manifest import Manifest
from aot.cache_store.memory import MemoryStore
from aot.cache_store.store import Ref
from tests.artifacts import packed

PARTS = {"recipe": "r", "variant": "tiny", "target.device": "cpu", "scope": "whole", "mode": "a"}


def _built(store: MemoryStore, folder: Path, parts: dict[str, str], seconds: dict[str, float], day: int) -> None:
    folder.mkdir()
    layer, entries, blob = packed(folder, {"a.so": b"x"})
    created = f"2026-01-{day:02}T00:00:00Z"
    manifest = Manifest(
        name="r", key=parts, created=created, producer={}, layers=(layer,), files=tuple(entries), measured={"compile_s": seconds}
    )
    store.commit(Ref.of(manifest), manifest.encode(), {layer.digest: blob})


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    store = MemoryStore()
    _built(store, tmp_path / "1", PARTS, {"vae.decoder-0.so": 10.0, "vae.decoder-1.so": 20.0, "unet-2.so": 7.0}, 1)
    _built(store, tmp_path / "2", {**PARTS, "scope": "regional"}, {"unet-0.so": 3.0}, 2)
    _built(store, tmp_path / "3", {**PARTS, "mode": "b"}, {"unet-0.so": 5.0}, 3)
    _built(store, tmp_path / "4", {**PARTS, "target.device": "cuda"}, {"unet-0.so": 99.0}, 4)
    return store


def test_it_is_the_mean_of_a_components_graphs_in_the_build_most_alike(store: MemoryStore) -> None:
    assert expected_seconds(store, PARTS) == {"vae.decoder": 15.0, "unet": 7.0}
    assert expected_seconds(store, {**PARTS, "scope": "regional", "mode": "c"}) == {"unet": 3.0}
    assert expected_seconds(store, {**PARTS, "mode": "c"}) == {"unet": 5.0}  # of two alike, the newer


@pytest.mark.parametrize("part", ["recipe", "variant", "target.device"])
def test_of_another_model_or_kind_of_machine_nothing_is_expected(store: MemoryStore, part: str) -> None:
    assert expected_seconds(store, {**PARTS, part: "another"}) == {}
