"""A matrix as a page, in a real browser where there is one; and the gate on what got slower."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aot.artifact.key import Key
from aot.cache_store.local import LocalStore
from aot.cache_store.store import Entry, Ref
from aot.fleet.keys import Known
from aot.fleet.matrix import Cell
from aot.fleet.report import Course, courses, page
from aot.fleet.state import State
from tests.artifacts import small
from tests.fleet.test_state import CELL, PARTS, _entry, _known

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _timed(created: str, build: float, calls: float, **parts: str) -> Entry:
    entry = _entry(created, **parts)
    return replace(entry, producer={"cold_build": str(build)}, measured={"graph_first_call_s": {"a": calls, "b": calls}})


def test_builds_of_one_thing_are_a_course_whatever_moved_between_them() -> None:
    first = _timed("2026-01-01T00:00:00Z", 40, 0.5)
    moved = _timed("2026-02-01T00:00:00Z", 50, 0.5, **{"component/transformer/fingerprint": "sha256:" + "3" * 64})
    other = _timed("2026-02-01T00:00:00Z", 70, 0.1, shapes="32x32")
    found = {(course.name, course.what): course for course in courses([moved, other, first])}
    course = found["pixart-alpha tiny 64x64 NVIDIA H200", "building"]
    assert course.seconds == (40.0, 50.0)
    assert course.slower() == pytest.approx(0.25)
    assert found["pixart-alpha tiny 64x64 NVIDIA H200", "the first calls"].slower() == 0
    assert found["pixart-alpha tiny 32x32 NVIDIA H200", "building"].slower() == 0
    assert Course("x", "building", (2.0, 1.0)).slower() == 0


def _states() -> list[State]:
    told = {"calls": [{"relative_l2": 2e-7}, {"relative_l2": 3e-6}]}
    there = replace(_entry(), certificate=told, signers=("f" * 64,))
    other = replace(CELL, gpu="rtx-4090", what="<script>alert(1)</script>")
    return [State(CELL, _known(), there), State(other, Known(None), why="nothing was built & why")]


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_the_page_has_every_cell_and_nothing_from_elsewhere() -> None:
    html = page(_states(), [Course("pixart", "building", (1.0, 2.0))], allowed=0.1)
    text = _Text()
    text.feed(html)
    said = " ".join(text.found)
    for part in (
        "1 of 2 artifacts are there",
        "relative L2 3.0e-06",
        f"signed by {'f' * 12}",
        "to build",
        "nothing was built & why",
        "+100%",
    ):
        assert part in said
    assert "script" not in text.tags
    assert "http" not in html


@pytest.mark.skipif(BROWSER is None, reason="there is no browser here")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_grid(dark: bool, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page(_states(), [Course("pixart", "building", (1.0, 2.0))], allowed=0.1))
    blink = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *blink, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "1 of 2 artifacts are there" in done.stdout
    picture = tmp_path / "page.png"
    shot = [f"--screenshot={picture}", "--window-size=900,600", file.as_uri()]
    subprocess.run([str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", *blink, *shot], capture_output=True, timeout=120)
    assert picture.stat().st_size > 5000


def _aot(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "AOT_HOME": str(home)}
    return subprocess.run([sys.executable, "-m", "aot.cli.app", "matrix", *words], capture_output=True, text=True, env=environ)


def test_what_got_slower_ends_the_command_with_its_own_code(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "home")
    for created, build in (("2026-01-01T00:00:00Z", "10.0"), ("2026-01-02T00:00:00Z", "12.0")):
        _, manifest, blobs = small(tmp_path, text=build, created=created)
        key = {**PARTS, "target.diffusers": build}
        changed = replace(manifest, name="pixart-alpha", key=key, producer={"cold_build": build}, measured={})
        store.commit(Ref("pixart-alpha", Key(key).digest), changed.encode(), blobs)
    file = tmp_path / "m.toml"
    file.write_text('gpus = ["h200"]\ntorch = ["2.11.0"]\n[[model]]\nwhat = "pixart-alpha"\nvariant = "tiny"\n')
    html = tmp_path / "page.html"
    found = _aot(tmp_path / "home", "report", str(file), "--html", str(html), "--fail-over", "10%", "--json")
    assert found.returncode == 14, found.stderr
    assert "building took 10.00 s before and 12.00 s now" in found.stderr
    assert [course["slower"] for course in json.loads(found.stdout)["courses"]] == [0.2]
    assert "+20%" in html.read_text()
    assert _aot(tmp_path / "home", "report", str(file), "--fail-over", "25%").returncode == 0
    refused = _aot(tmp_path / "home", "report", str(file), "--fail-over", "ten")
    assert (refused.returncode, "--fail-over 'ten' is no share" in refused.stderr) == (2, True)
    assert isinstance(CELL, Cell)
