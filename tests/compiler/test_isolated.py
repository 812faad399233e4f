"""Environments for another torch: what is refused before anything is made, and, slowly, a build in a real one."""

import errno
import fcntl
import os
import stat
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from aot.building.build import build
from aot.cache_store.errors import StoreFull
from aot.cache_store.local import LocalStore
from aot.cli.text import found_cubins
from aot.compiler.isolated import OURS, Interpreter, interpreter
from aot.compiler.stage import Stage
from aot.errors import BadEnvironment, BadInput
from tests.cache_store.faults import refuse
from tests.conftest import H200, SHAPES, request_for
from tests.shared import quiet


def test_the_torch_that_is_installed_needs_no_environment(tmp_path: Path) -> None:
    here = Version(version("torch")).public
    for text in (here, f"{here}+cu130", here.removesuffix(".0")):
        assert interpreter(text, tmp_path, progress=quiet, environ={}) == Interpreter()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torch", ["2.10.0", "2.16.0", "newest", ""])
def test_a_version_that_is_not_supported_or_is_none_is_refused(tmp_path: Path, torch: str) -> None:
    with pytest.raises(BadInput, match="--torch"):
        interpreter(torch, tmp_path, progress=quiet, environ=os.environ)
    assert list(tmp_path.iterdir()) == []


def _uv(folder: Path, script: str) -> dict[str, str]:
    """An environment whose `uv` is this shell script."""
    tool = folder / "bin" / "uv"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{tool.parent}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo 'No solution found: there is no version of torch==2.13.77' >&2; exit 1", BadInput, "no package index that uv asks has this"),
        ("echo 'Failed to fetch: connection refused' >&2; exit 2", BadEnvironment, "connection refused"),
    ],
)
def test_when_uv_fails_the_reason_is_told_and_nothing_is_left(tmp_path: Path, script: str, error: type[Exception], words: str) -> None:
    root = tmp_path / "root"
    with pytest.raises(error, match=words):
        interpreter("2.13.77", root, progress=quiet, environ=_uv(tmp_path, script))
    assert [path for path in (root / "environments").iterdir() if path.is_dir()] == []


def test_a_disk_with_too_little_room_is_told_before_anything_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aot.compiler.isolated._NEEDED", 1 << 60)
    with pytest.raises(StoreFull, match="an environment needs about"):
        interpreter("2.13.77", tmp_path / "root", progress=quiet, environ=_uv(tmp_path, "exit 9"))


def test_a_disk_without_locks_is_told_before_two_builds_spoil_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with pytest.raises(BadEnvironment, match="its disk has no locks"):
        interpreter("2.11.0", tmp_path / "home", progress=quiet, environ=os.environ)


def test_without_uv_the_remedy_is_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(BadEnvironment, match="needs uv") as caught:
        interpreter("2.13.77", tmp_path, progress=quiet, environ={"PATH": str(tmp_path)})
    assert caught.value.remedy == "pip install uv."


@pytest.mark.slow
def test_an_artifact_is_built_with_another_torch_and_the_environment_is_used_again(tmp_path: Path) -> None:
    """Minutes, and 5 GB of packages."""
    other = "2.13.0" if not version("torch").startswith("2.13") else "2.11.0"
    store = LocalStore(tmp_path / "home")
    made: list[Stage] = []
    first = interpreter(other, store.root, progress=made.append, environ=os.environ)
    again = interpreter(other, store.root, progress=made.append, environ=os.environ)
    assert (first, [stage.seconds is None for stage in made]) == (again, [True, False])
    assert {path.name for path in Path(dict(first.variables)["PYTHONPATH"]).iterdir()} == {OURS}
    for gpu in (H200, {"cache_layer": False}):
        request = request_for(**gpu, components=("text_encoder",), shapes=SHAPES[:1])
        built = build(request, store, progress=quiet, environ=os.environ, interpreter=first)
        assert built.manifest.key["target.torch"] == other
        assert built.manifest.producer["torch"].split("+")[0] == other
        assert list(found_cubins(built.manifest)) == (["sm_90"] if gpu is H200 else [])
