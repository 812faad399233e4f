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
from aot.fleet.keys import Keys, Known, _is_fixed
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


@pytest.mark.parametrize(
    ("mode", "options", "wanted", "by_simulation", "by_gpu"),
    [
        ("", (), "heuristics", True, True),  # what can be built there: the GPU's own is better
        ("max-autotune", (), "heuristics", False, True),  # a plan without the GPU leaves the timing out, and the artifact must not
        ("max-autotune", ("--untuned",), "heuristics", True, False),
        ("low-precision", (), None, True, True),
    ],
)
def test_a_cell_is_there_when_what_it_needs_built_it(
    mode: str, options: tuple[str, ...], wanted: str | None, by_simulation: bool, by_gpu: bool
) -> None:
    cell = replace(CELL, mode=mode, options=(*CELL.options, *options))
    left = () if wanted else ("tuning",)
    known = replace(_known(), key=Key({name: value for name, value in PARTS.items() if name not in left}), simulated=True)
    for entry, there in ((_entry(left=left), by_simulation), (_entry(layers="graph cache", left=("tuning",)), by_gpu)):
        (state,) = states([cell], [known], [entry])
        assert state.to_build is not there
        (state,) = states([cell], [replace(known, key=Key({**known.key.parts, "shapes": "32x32"}))], [entry])  # type: ignore[union-attr]
        assert state.to_build


def test_where_the_gpu_is_here_only_what_it_built_is_there() -> None:
    known = Known(Key({name: value for name, value in {**PARTS, "layers": "graph cache"}.items() if name != "tuning"}))
    for entry, there in ((_entry(), False), (_entry(layers="graph cache", left=("tuning",)), True)):
        (state,) = states([CELL], [known], [entry])
        assert state.to_build is not there


def test_of_a_torch_without_an_environment_its_artifact_is_known_by_all_but_what_comes_with_it() -> None:
    wanted = {name: value for name, value in PARTS.items() if name != "target.torch"}
    known = Known(None, ("vae.decoder",), "its torch 2.13.0 has no environment here yet", True, Key({**wanted, "target.torch": "2.13.0"}))
    built = _entry(**{"target.torch": "2.13.0", "target.cuda": "13.0", "target.triton": "3.7.0"})
    (state,) = states([replace(CELL, torch="2.13.0")], [known], [built])
    assert state.entry is built
    (state,) = states([replace(CELL, torch="2.13.0")], [known], [_entry(**{"target.cuda": "13.0", "target.triton": "3.8.0"})])
    assert (state.to_build, state.why, state.seconds) == (True, known.why, 25.0)


@pytest.mark.compiles
def test_a_torch_without_an_environment_is_not_made_one_to_know_a_key(tmp_path: Path) -> None:
    cell = replace(CELL, options=("--variant", "tiny", "--components", "transformer"))
    environ = {**os.environ, "AOT_HOME": str(tmp_path)}
    here, (known,) = (Keys(tmp_path, environ).of([replace(cell, torch=torch)]) for torch in ("", "2.11.0"))
    assert known.key is None
    assert "torch 2.11.0 has no environment here" in known.why
    assert known.like is not None
    assert here[0].key is not None
    assert {name for name, *_ in known.like.diff(here[0].key)} == {"target.torch", "target.cuda", "target.triton"}
    assert not (tmp_path / "environments").exists()


@pytest.mark.parametrize("options", [("--module", "mine"), ()])
def test_what_code_of_the_users_own_makes_is_looked_into_each_time(options: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    assert _is_fixed(Cell(str(folder), "cpu"))
    if not options:
        (folder / "modeling.py").touch()
    assert not _is_fixed(Cell(str(folder), "cpu", options=options))
    assert not _is_fixed(Cell(str(tmp_path / "recipe.py"), "cpu"))


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
