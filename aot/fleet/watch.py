"""Watch: what was published since a matrix was built, and which cells that adds."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from packaging.version import Version

from aot.compiler.isolated import find_uv
from aot.errors import BadEnvironment
from aot.fleet.matrix import Cell
from aot.machine.target import TORCH_BELOW, TORCH_MIN

_WATCHED = {"torch": f">={TORCH_MIN},<{TORCH_BELOW}", "diffusers": "", "transformers": ""}


@dataclass(frozen=True, slots=True)
class Release:
    """The newest version of a library that the package index of this machine has, of those that are supported; and that of here."""

    name: str
    here: str
    newest: str

    @property
    def is_new(self) -> bool:
        return Version(self.newest) > Version(self.here)

    def __str__(self) -> str:
        return f"{self.name} {self.newest} is published, {self.here} is here"


def releases(environ: Mapping[str, str]) -> list[Release]:
    """Of what graphs are traced from. uv asks the index that it is configured for; nothing is installed. Raises BadEnvironment."""
    wanted = "\n".join(f"{name}{limits}" for name, limits in _WATCHED.items())
    command = [find_uv(environ, "watching"), "pip", "compile", "-q", "--no-deps", "--no-header", "--no-annotate", "--upgrade", "-"]
    done = subprocess.run(command, input=wanted, check=False, capture_output=True, text=True, env=dict(environ))
    if done.returncode:
        said = " ".join(done.stderr.split())[-400:]
        raise BadEnvironment(f"uv could not say what is published: {said}", remedy="repair that, and watch again.")
    found = dict(line.split("==", 1) for line in done.stdout.split() if "==" in line)
    return [Release(name, Version(version(name)).public, found[name]) for name in _WATCHED if name in found]


def with_torch(cells: Sequence[Cell], published: Sequence[Release]) -> tuple[list[Cell], str]:
    """The cells that a torch newer than any of the matrix adds, each one of its newest for that version; and why, in words."""
    torch = next((release for release in published if release.name == "torch"), None)
    if torch is None:
        return [], ""
    newest = max({cell.torch or torch.here for cell in cells}, key=Version)
    if Version(torch.newest) <= Version(Version(newest).public):
        return [], ""
    why = f"torch {torch.newest} is published, the newest of the matrix is {newest}"
    return [replace(cell, torch=torch.newest) for cell in cells if (cell.torch or torch.here) == newest], why
