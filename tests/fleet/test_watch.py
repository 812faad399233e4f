"""What is published, and the cells that it moves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from aot.errors import BadEnvironment
from aot.fleet.watch import Release, releases, with_torch
from tests.fleet.test_state import CELL

# an index of our own: a folder of packages is one to uv
INDEX = ("torch-2.15.9", "torch-2.16.0", "diffusers-0.99.0", "transformers-5.0.0")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in INDEX:
        _wheel(folder, *name.split("-"))
    return {**os.environ, "UV_FIND_LINKS": str(folder), "UV_NO_INDEX": "1", "UV_CACHE_DIR": str(tmp_path / "cache")}


def _wheel(folder: Path, name: str, number: str) -> None:
    import zipfile

    told = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}-{number}.dist-info/METADATA", told)
        file.writestr(f"{name}-{number}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{name}-{number}.dist-info/RECORD", "")


def test_the_newest_that_is_supported_is_told_of_each_library(environ: dict[str, str]) -> None:
    found = {release.name: release for release in releases(environ)}
    assert found["torch"].newest == "2.15.9"
    assert found["torch"].here == Version(version("torch")).public
    assert found["diffusers"].is_new
    assert not found["transformers"].is_new
    with pytest.raises(BadEnvironment, match="uv could not say what is published"):
        releases({**environ, "UV_FIND_LINKS": "/nowhere"})


def test_a_new_torch_adds_a_cell_for_each_of_the_newest_that_the_matrix_has() -> None:
    published = [Release("diffusers", "0.42.1", "0.99.0"), Release("torch", "2.14.1", "2.15.9")]
    newest, older = replace(CELL, torch="2.14.1+cpu"), replace(CELL, torch="2.13.0")
    (added,), why = with_torch([newest, older], published)
    assert added.torch == "2.15.9"
    assert why == "torch 2.15.9 is published, the newest of the matrix is 2.14.1+cpu"
    assert [cell.torch for cell in with_torch([CELL], published)[0]] == ["2.15.9"]
    assert with_torch([replace(CELL, torch="2.15.9"), older], published)[0] == []
    assert with_torch([CELL], [Release("torch", "2.15.9", "2.15.9")])[0] == []
    assert [cell.torch for cell in with_torch([older], [Release("torch", "2.15.9", "2.15.9")])[0]] == ["2.15.9"]
    assert with_torch([CELL], [])[0] == []


def test_watching_builds_nothing_and_tells_a_scheduler(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('gpus = ["h200"]\ntorch = ["2.11.0"]\n[[model]]\nwhat = "pixart-alpha"\nvariant = "tiny"\n')
    command = [sys.executable, "-m", "aot.cli.app", "matrix", "watch", str(file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**environ, "AOT_HOME": str(tmp_path / "home")})
    assert done.returncode == 0, done.stderr
    assert [cell["arguments"][4] for cell in json.loads(done.stdout)["moved"]] == ["2.11.0", "2.15.9"]
    assert "diffusers 0.99.0 is published" in done.stderr
