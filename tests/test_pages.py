"""Every command and every example of every page is run, as it is written there, or says what it needs that is not here."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import aot
from aot.cache_store.local import LocalStore
from aot.cache_store.signing import SigningKey
from scripts import for_machines, ledger_svg
from tests.cache_store.hub_server import Hub
from tests.pixart import make_pipe

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:^<!-- (?P<marker>[^\n]*?) -->\n)?^```(?P<language>bash|python)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_HERE = ("needs the network", "needs a GPU", "needs your own files")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    marker: str
    language: str
    text: str

    @property
    def slow(self) -> bool:
        return self.marker == "slow"

    @property
    def needs(self) -> bool:
        return self.marker.endswith(NOT_HERE)


def blocks(page: Path) -> list[Block]:
    return [Block(match["marker"] or "", match["language"], match["text"]) for match in BLOCK.finditer(page.read_text())]


MADE = ROOT / "aot" / "SKILL.md"  # of the other pages, which are run
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".git"} & {*path.relative_to(ROOT).parts[:1]} and not path.is_symlink() and path != MADE
)
OF_COMMANDS = [page for page in PAGES if any(not block.needs for block in blocks(page))]


def _pages(*, slow: bool) -> list[object]:
    found = [page for page in OF_COMMANDS if any(block.slow is slow for block in blocks(page) if not block.needs)]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader types: it has the scripts, and what is written does not get into the checkout."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "scripts").symlink_to(ROOT / "scripts")
    return tmp_path / "here"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        yield hub


def _run(page: Path, folder: Path, environ: dict[str, str], *, slow: bool) -> None:
    for block in blocks(page):
        if block.language == "bash" and block.slow is slow and not block.needs:
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": path, **environ})
            assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", _pages(slow=False))
def test_the_commands_of_a_page_run_as_they_are_written(page: Path, store: LocalStore, hub: Hub, folder: Path) -> None:
    environ = {
        "AOT_HOME": str(store.root), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(folder / "hf"),
        "KEY": str(SigningKey.of_machine(store.root).public),
    }  # fmt: skip
    _run(page, folder, environ, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages(slow=True))
def test_the_long_commands_of_a_page_run_as_they_are_written(page: Path, tmp_path: Path, folder: Path) -> None:
    _run(page, folder, {"AOT_HOME": str(tmp_path / "home")}, slow=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_and_its_links_lead_somewhere(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXFORT_GRAPH_CACHE", raising=False)
    for block in blocks(page):
        if block.language == "python":
            pipe = make_pipe()
            try:
                exec(block.text, {"pipe": pipe, "vae": pipe.vae})
            finally:
                aot.restore(pipe)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_marker_is_one_that_is_known() -> None:
    found = {block.marker for page in PAGES for block in blocks(page)}
    assert found <= {"", "slow", *NOT_HERE, *(f"{name}: needs the network" for name in ("bench", "test"))}


def test_the_front_page_fits_a_screen_or_two() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_the_picture_is_drawn_from_the_figures_that_are_here() -> None:
    import json

    figures = ROOT / "scripts" / "results" / "pixart-alpha-small-cpu.json"
    assert figures.with_suffix(".svg").read_text() == ledger_svg.drawn(json.loads(figures.read_text()))


def test_the_pages_for_machines_are_what_the_pages_and_the_help_say() -> None:
    assert (for_machines.FOLDER / "llms.txt").read_text() == for_machines.index()
    assert MADE.read_text() == for_machines.skill(), "python scripts/for_machines.py"
    for page in (for_machines.FOLDER / "llms.txt", MADE):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
