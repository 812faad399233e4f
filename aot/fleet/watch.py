"""Watch: what was published since a matrix was built, and which of its cells that moves."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

from packaging.version import Version

from aot.compiler.isolated import find_uv
from aot.errors import BadEnvironment
from aot.fleet.keys import Known
from aot.fleet.state import State
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


def with_torch(states: Sequence[State], release: Release) -> list[State]:
    """The cells that a new torch adds: each one of the matrix, for that version. What they take is what its newest artifact took."""
    known = {state.cell.torch for state in states}
    if release.newest in known or not release.is_new:
        return []
    newest = max(known, key=lambda text: Version(text or release.here))
    why = f"torch {release.newest} is published, the newest of the matrix is {newest or release.here}"
    return [
        State(replace(state.cell, torch=release.newest), Known(None, why=why), None, why, _seconds(state), state.memory)
        for state in states
        if state.cell.torch == newest
    ]


def _seconds(state: State) -> float | None:
    if state.entry is None:
        return state.seconds
    told = state.entry.producer.get("cold_build")
    return float(told) if told else None
