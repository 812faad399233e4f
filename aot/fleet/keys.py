"""Keys of cells. Finding one means running the model on fakes, so it is done once for all GPUs of a group, and kept in the store's root.

Between GPUs that a build simulates a key differs in what names the GPU alone; between versions of torch, in what names these.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from aot.artifact.key import Key
from aot.cache_store.canonical import encode
from aot.cache_store.written import write_hint
from aot.compiler.isolated import is_ready
from aot.fleet.matrix import Cell, is_recipe
from aot.fleet.work import NO_GPU, command, sentence
from aot.machine.device import is_here
from aot.machine.sku import CPU, find_sku
from aot.machine.target import cpu_here
from aot.request.origin import Origin
from aot.verbs.source import kind_of
from aot.version import VERSION

_TRACED = ("torch", "diffusers", "transformers")
_PER_GPU = ("target.sku", "target.arch")
PER_TORCH = ("target.torch", "target.cuda", "target.triton")
_FULL_COMMIT = 40


@dataclass(frozen=True, slots=True)
class Known:
    """A cell's key, or why it cannot be told here; `graphs` are what it compiles, in words. `simulated`: it is that of a build without
    the GPU. `like` is, where a torch has no environment here, what is known of its key: all but what else comes with that torch."""

    key: Key | None
    graphs: tuple[str, ...] = ()
    why: str = ""
    simulated: bool = False
    like: Key | None = None


class Keys:
    """Those of cells, found with this machine's libraries; `root` keeps what was found. `found` hears of each group that is looked
    into, which takes some seconds. `away`: what needs no GPU is built elsewhere, without one, also where this machine has it."""

    def __init__(
        self, root: Path, environ: Mapping[str, str], *, away: bool = False, found: Callable[[str], None] = lambda _: None
    ) -> None:
        self._root, self._environ, self._found, self._away = root, environ, found, away
        self._groups: dict[str, Known] = {}
        self._versions = [VERSION, *map(_installed, _TRACED)]
        self._here, self._content, self._ready = cache(is_here), cache(_content), cache(lambda torch: is_ready(torch, root))

    def of(self, cells: Iterable[Cell]) -> list[Known]:
        """The key of each cell, in their order."""
        return [self._of(cell) for cell in cells]

    def _of(self, cell: Cell) -> Known:
        if not cell.torch or self._ready(cell.torch):
            return self._found_here(cell)
        here, torch = self._found_here(replace(cell, torch="")), Version(cell.torch).public
        if here.key is None:
            return here
        like = Key({name: value for name, value in here.key.parts.items() if name not in PER_TORCH} | {PER_TORCH[0]: torch})
        why = f"its torch {torch} has no environment here yet; a build makes one"
        return replace(here, key=None, why=why, like=like)

    def _found_here(self, cell: Cell) -> Known:
        simulated = cell.gpu != CPU and not (self._here(cell.gpu) and (cell.on_gpu or not self._away))
        group = self._group(cell, simulated)
        if group not in self._groups:
            self._groups[group] = replace(self._look(cell, group, simulated), simulated=simulated)
        known = self._groups[group]
        if known.key is None or not simulated:
            return known
        row = find_sku(cell.gpu)
        parts = {**known.key.parts, **dict(zip(_PER_GPU, (row.name, str(row.architecture)), strict=True))}
        return replace(known, key=Key(parts))

    def _group(self, cell: Cell, simulated: bool) -> str:
        """What tells whether two cells' keys differ in the GPU's name alone."""
        machine = cpu_here() if cell.gpu == CPU else "simulated" if simulated else cell.gpu
        return sha256(encode([machine, *cell.arguments("-"), self._content(cell.what), *self._versions])).hexdigest()

    def _look(self, cell: Cell, group: str, simulated: bool) -> Known:
        kept = self._root / "plans" / f"{group}.json"
        fixed = _is_fixed(cell)
        if fixed and kept.is_file():
            try:
                found = json.loads(kept.read_text())
                return Known(Key(found["key"]), tuple(found["graphs"]))
            except (ValueError, KeyError, TypeError):
                pass  # cut short by a full disk: it is found again
        self._found(str(cell))
        done = subprocess.run(
            command(["build", *cell.arguments(), *_plannable(cell, simulated), "--plan", "--json"]),
            check=False,
            capture_output=True,
            text=True,
            env={**self._environ, **(NO_GPU if simulated else {})},
        )
        if done.returncode:
            return Known(None, why=sentence(done.stderr))
        found = json.loads(done.stdout)
        graphs = tuple(row["graph"] for row in found["graphs"])
        if fixed:
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            write_hint(kept, json.dumps({"key": found["key"], "graphs": graphs}).encode())
        return Known(Key(found["key"]), graphs)


def _plannable(cell: Cell, simulated: bool) -> list[str]:
    """What a key can be found with without the GPU: what times kernels there is left out."""
    return ["--untuned"] if simulated and cell.on_gpu else []


def _content(what: str) -> str:
    """A digest of what a path holds, as far as a build reads it; the name alone of what is no path."""
    path = Path(what)
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path] if path.is_file() else []
    digest = sha256(what.encode())
    for file in files:
        digest.update(encode([str(file.relative_to(path) if path.is_dir() else file.name)]) + file.read_bytes())
    return digest.hexdigest()


def _is_fixed(cell: Cell) -> bool:
    """Whether the same words mean the same model tomorrow: not those of a repository's branch, nor code of the user's own."""
    path = Path(cell.what)
    if "--module" in cell.options or path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py"))):
        return False
    named = kind_of(cell.what) is not Origin or is_recipe(cell.what)
    return named or path.exists() or len("".join(cell.given("--revision"))) == _FULL_COMMIT


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
