"""The torch corruption corpus, scaled down: damaged files of an artifact never reach torch. scripts/corruption.py has all of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from aot.building.build import Built
from aot.cache_store.layer import materialise
from aot.cache_store.local import LocalStore

SCRIPTS = Path(__file__).parents[2] / "scripts"
FAULTS = 30


def test_no_damage_of_an_artifact_comes_through(built: tuple[LocalStore, Built], tmp_path: Path) -> None:
    """Every fault falls back to the right numbers, and is said unless the artifact served all the same."""
    found = tmp_path / "found.json"
    command = [sys.executable, SCRIPTS / "corruption.py", "--only", "aot", "--faults", str(FAULTS)]
    done = subprocess.run([*command, "--store", built[0].root, "--json", found], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(found.read_text())["aot"]
    assert told["not_ok"] == []
    counts = told["all"]
    assert counts["trials"] == counts["ok"] == FAULTS
    assert counts.get("silent", 0) == 0
    assert counts["said"] > FAULTS / 2  # the rest hit what this load needs not: the cache layer, the index
    for kind in ("stored graph layer", "stored manifests", "stored refs", "packed AOTI library", "packed kernel .so", "packed wrapper .py"):
        assert told["by_kind"][kind]["said"] == told["by_kind"][kind]["trials"] > 0


EXPECTED = torch.arange(8.0)


def _ends(outcome: str) -> dict[str, Any]:
    match outcome:
        case "signal":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exception":
            raise OSError("read only")
        case "hang":
            time.sleep(60)
    raise AssertionError(outcome)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    import corruption_faults

    return corruption_faults


@pytest.mark.parametrize(
    ("outcome", "detail"),
    [
        ("ok", ""),
        ("wrong", "relative L2 1.0e+00"),
        ("signal", "SIGSEGV"),
        ("exception", "OSError: read only"),
        ("hang", "no answer in 1 s"),
    ],
)
def test_the_harness_tells_every_way_to_fail(faults: Any, tmp_path: Path, outcome: str, detail: str) -> None:
    """One that could not fail would find nothing either. Without the fault every loader is right."""

    def load(files: dict[str, bytes], directory: Path) -> dict[str, Any]:
        if files == whole or outcome == "ok":
            return {"output": faults.as_text(EXPECTED)}
        return {"output": faults.as_text(-0.0 * EXPECTED)} if outcome == "wrong" else _ends(outcome)

    whole = {"a.so": bytes(range(200)), "b.so": b"other"}
    corpus = faults.Corpus("some", tmp_path, EXPECTED, [faults.Target("library", whole, ["a.so"], load)], deadline=1)
    row = corpus.trial(0, seed=0)
    assert (row["outcome"], row["detail"]) == (outcome, detail)
    assert row["fault"] == "flip"
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_fails_of_itself_is_no_finding(faults: Any, tmp_path: Path) -> None:
    def load(files: dict[str, bytes], directory: Path) -> dict[str, Any]:
        raise OSError("always")

    corpus = faults.Corpus("some", tmp_path, EXPECTED, [faults.Target("library", {"a.so": b"x"}, ["a.so"], load)])
    with pytest.raises(SystemExit, match="not damaged: exception, OSError: always"):
        corpus.trial(0, seed=0)


def test_every_kind_of_fault_changes_what_it_says(faults: Any, built: tuple[LocalStore, Built], tmp_path: Path) -> None:
    """On a real library: a flipped bit is one bit, and one of executed code lies in a kernel."""
    store, manifest = built[0], built[1].manifest
    layer = manifest.layer("graph")
    assert layer is not None
    entry = next(entry for entry in manifest.files_of(layer) if entry.path.endswith(".so"))
    with store.open_blob(layer.digest) as blob:
        (library,) = materialise(layer, files=[entry], blob=blob, into=tmp_path)
    files = {"a.so": library.read_bytes(), "b.so": b"another"}
    spans = faults.executed(files["a.so"])
    assert spans
    for fault in {faults.fault_of(turn, "a.so", files["a.so"]) for turn in range(14)}:
        changed, where = faults.damage(files, "a.so", fault, faults.Random(0))
        assert (changed, where) == faults.damage(files, "a.so", fault, faults.Random(0))
        assert changed.get("a.so") != files["a.so"]
        if fault in ("flip", "executed"):
            (place,) = (place for place, (old, new) in enumerate(zip(files["a.so"], changed["a.so"], strict=True)) if old != new)
            assert (files["a.so"][place] ^ changed["a.so"][place]).bit_count() == 1
        if fault == "executed":
            assert any(offset <= place < offset + length for offset, length in spans)
