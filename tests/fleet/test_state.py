"""What a store has of a matrix, and the keys by which it is asked."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aot.artifact.key import Key
from aot.cache_store.digest import Digest
from aot.cache_store.store import Entry, Ref
from aot.fleet.keys import Keys, Known
from aot.fleet.matrix import Cell
from aot.fleet.state import states

PARTS = {
    "recipe": "pixart-alpha",
    "variant": "tiny",
    "shapes": "64x64",
    "mode": "max-optimize",
    "tuning": "heuristics",
    "layers": "graph",
    "target.device": "cuda",
    "target.sku": "NVIDIA H200",
    "target.arch": "sm_90",
    "target.torch": "2.14.1",
    "component/transformer/fingerprint": "sha256:" + "1" * 64,
}
CELL = Cell("pixart-alpha", "h200", sizes=("64x64",), options=("--variant", "tiny"))


def _known(**parts: str) -> Known:
    return Known(Key({**PARTS, **parts}), ("transformer block x2", "vae.decoder"))


def _entry(created: str = "2026-01-01T00:00:00Z", *, left: tuple[str, ...] = (), **parts: str) -> Entry:
    key = {name: value for name, value in {**PARTS, **parts}.items() if name not in left}
    measured = {"compile_s": {"transformer-0.so": 20.0, "vae.decoder-1.so": 10.0}, "memory": {"peak_bytes": 3 << 30}}
    ref = Ref(key["recipe"], Key(key).digest)
    fields: dict[str, Any] = {"size": 1, "producer": {"cold_build": "40.0"}, "measured": measured, "certificate": {}}
    return Entry(ref=ref, digest=Digest.of(str(key).encode()), created=created, key=key, **fields)


def test_what_the_store_has_by_its_key_is_up_to_date() -> None:
    entry = _entry()
    (state,) = states([CELL], [_known()], [_entry(shapes="32x32"), entry])
    assert state.entry is entry
    assert not state.to_build


def test_the_parts_that_moved_since_the_nearest_of_that_gpu_are_named_and_what_it_took_is_expected() -> None:
    moved = _entry(**{"component/transformer/fingerprint": "sha256:" + "2" * 64, "target.torch": "2.13.0"})
    further = _entry(**{"target.torch": "2.13.0", "mode": "max-autotune", "shapes": "32x32"})
    other = _entry(**{"target.sku": "NVIDIA A100", "target.torch": "2.14.1"})
    (state,) = states([CELL], [_known()], [other, further, moved])
    assert state.to_build
    assert moved.digest.short in state.why
    assert "component/transformer/fingerprint moved, target.torch 2.13.0 -> 2.14.1" in state.why
    assert (state.seconds, state.memory) == (15.0 * 2 + 10.0, 3 << 30)


def test_what_was_never_built_for_a_gpu_is_expected_to_take_what_another_took() -> None:
    (state,) = states([CELL], [_known()], [_entry(**{"target.sku": "NVIDIA A100-SXM4-80GB"})])
    assert state.why == "nothing was built of pixart-alpha for h200"
    assert state.seconds == 40.0
    (state,) = states([CELL], [_known()], [])
    assert (state.seconds, state.memory) == (None, None)


def test_a_cell_whose_key_is_not_known_is_to_build_and_says_why() -> None:
    (state,) = states([CELL], [Known(None, why="no environment with torch 2.13.0 was made here")], [_entry()])
    assert state.to_build
    assert "torch 2.13.0" in state.why


def test_a_tuned_cell_is_there_when_the_gpu_itself_built_it_and_not_when_it_was_built_without() -> None:
    tuned = replace(CELL, mode="max-autotune")
    (state,) = states([tuned], [_known()], [_entry(layers="graph,cache", left=("tuning",))])
    assert not state.to_build
    (state,) = states([tuned], [_known(shapes="32x32")], [_entry(layers="graph,cache", left=("tuning",))])
    assert state.to_build


def test_a_torch_without_an_environment_is_not_made_one_to_know_a_key(tmp_path: Path) -> None:
    known = Keys(tmp_path, os.environ).of([replace(CELL, torch="2.11.0")])
    assert known[0].key is None
    assert "no environment with torch 2.11.0" in known[0].why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.compiles
def test_a_key_is_found_once_for_all_absent_gpus_and_is_that_of_each_kept_and_not_asked_again(tmp_path: Path) -> None:
    looked: list[str] = []
    cells = [replace(CELL, gpu=gpu, options=("--variant", "tiny", "--components", "transformer")) for gpu in ("h200", "rtx-4090", "a10")]
    environ = {**os.environ, "AOT_HOME": str(tmp_path)}
    found = Keys(tmp_path, environ, found=looked.append).of(cells)
    assert looked == [str(cells[0])]
    assert Keys(tmp_path, environ, found=looked.append).of(cells) == found
    assert len(looked) == 1
    alone = tmp_path / "alone"
    assert Keys(alone, {**environ, "AOT_HOME": str(alone)}).of(cells[1:2]) == found[1:2]
    assert len({known.key and known.key.digest for known in found}) == 3


@pytest.mark.compiles
def test_what_cannot_be_built_is_said_where_its_key_would_be(tmp_path: Path) -> None:
    (known,) = Keys(tmp_path, {**os.environ, "AOT_HOME": str(tmp_path)}).of([replace(CELL, sizes=("33x33",))])
    assert known.key is None
    assert "multiple of 16" in known.why
