"""Spaces: what a repository of the Hub has at its root for ZeroGPU Spaces: the packages of one artifact, and what they are for.

`spaces.aoti_blocks_load(module, repo, variant)` looks for `{BlockClass}.{variant}/package.pt2` and `config.{variant}.json`,
`spaces.aoti_load(module, repo)` below `package/`; both without a key: what lies there is what is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from aot.artifact.key import Key
from aot.errors import BadInput

CONFIG = "config.json"
_MACHINE = ("target.sku", "target.torch")  # in which packages must be alike to take each other's place
_OWN = "aot"  # our part of the config
_MAX_CONFIG = 64 << 10  # bytes
_VARIANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def about(key: Key, calls: Mapping[str, str]) -> bytes:
    """The config: what packages of that key are for, and which calls each serves. A Space reads `kernels` of it and no more."""
    names = (*_MACHINE, "target.arch", "target.cuda", "target.triton", "mode", "options")
    told = {"key": str(key.digest), **{name: key.parts[name] for name in names if name in key.parts}, "calls": dict(calls)}
    return f"{json.dumps({_OWN: told}, indent=1)}\n".encode()


class Root(Protocol):
    """A repository at one commit."""

    def sizes(self, paths: list[str]) -> dict[str, int]: ...

    def read(self, path: str, *, limit: int) -> bytes | None: ...


def at_root(folder: Path, variant: str) -> dict[str, Path]:
    """The files of an unpacked layer by where a Space looks for them. Raises BadInput for a variant that cannot be."""
    if variant and not _VARIANT.fullmatch(variant):
        raise BadInput(f"--variant {variant!r} is no name of a variant.", remedy="letters, digits, dots and hyphens, as fp8.")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {_named(path.relative_to(folder), variant): path for path in files}


def _named(path: Path, variant: str) -> str:
    if not variant:
        return path.as_posix()
    if path.parts[0] == "package":
        raise BadInput("--variant: a package of a whole component has none.", remedy="push it to a repository of its own.")
    if path.name == CONFIG:
        return f"config.{variant}.json"
    return Path(f"{path.parts[0]}.{variant}", *path.parts[1:]).as_posix()


def check_room(root: Root, files: Mapping[str, Path]) -> None:
    """Raises BadInput where these would take the place of packages for another machine or torch, or of somebody's own: the Spaces that
    load them would break."""
    taken = sorted(path for path in root.sizes(sorted(files)) if not path.endswith(".json"))
    if not taken:
        return
    config = next(path for path in files if path.startswith("config.") or path == CONFIG)
    there, ours = _about(root.read(config, limit=_MAX_CONFIG)), _about(files[config].read_bytes())
    if any(there.get(name) != ours.get(name) for name in _MACHINE):
        said = f"for {there['target.sku']}, torch {there['target.torch']}" if there else "that aot did not make"
        raise BadInput(
            f"the repository has {taken[0]} {said}, and Spaces may load it.",
            remedy="--variant NAME puts these beside it, --replace in its place; or push to another repository.",
        )


def _about(raw: bytes | None) -> dict[str, Any]:
    """What a config says of its packages; nothing where it is not ours."""
    try:
        found = json.loads(raw or b"{}")
    except ValueError:
        return {}
    own = found.get(_OWN) if isinstance(found, dict) else None
    known = own if isinstance(own, dict) else {}
    return known if all(isinstance(known.get(name), str) for name in _MACHINE) else {}
