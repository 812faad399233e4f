"""Spaces: what a repository of the Hub has at its root for ZeroGPU Spaces: the packages of one artifact, and what they are for.

`spaces.aoti_blocks_load(module, repo, variant)` looks for `{BlockClass}.{variant}/package.pt2` and `config.{variant}.json`,
`spaces.aoti_load(module, repo)` below `package/`; both without a key: what lies there is what is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from aot.artifact.kernels import Kernel
from aot.artifact.key import Key
from aot.artifact.kinds import PACKAGE
from aot.errors import BadInput

CONFIG = "config.json"
# in what packages must be alike to take each other's place: a newer build of the same
_SAME = ("recipe", "variant", "target.sku", "target.torch", "mode", "options", "calls")
_ALSO_TOLD = ("target.arch", "target.cuda", "target.triton", "target.diffusers")
_OWN, _KERNELS = "aot", "kernels"  # our part of the config; what `spaces` reads of it
_MAX_CONFIG = 256 << 10  # bytes
_VARIANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def about(key: Key, calls: Mapping[str, str], kernels: Collection[Kernel] = ()) -> bytes:
    """The config: what the package in each folder is for, and which calls it serves; the kernels of the Hub whose operators they call,
    which `spaces` loads before them; and the operators of others that a Space itself must have."""
    told: dict[str, Any] = {"key": str(key.digest), **{name: key.parts[name] for name in (*_SAME, *_ALSO_TOLD) if name in key.parts}}
    hubs = {kernel: kernel.hub for kernel in kernels if kernel.hub and kernel.hub.is_whole}  # what kernels.get_kernel could fetch
    if asked := [{"repo_id": hub.repository, "revision": hub.revision} for hub in hubs.values()]:
        told[_KERNELS] = asked
    if left := sorted(f"{kernel.namespace}: {kernel}" for kernel in kernels if kernel not in hubs):
        told["operators"] = "; ".join(left)
    return _encode(_merged({}, {folder: {**told, "calls": served} for folder, served in calls.items()}))


class Root(Protocol):
    """A repository at one commit."""

    def sizes(self, paths: list[str]) -> dict[str, int]: ...

    def read(self, path: str, *, limit: int) -> bytes | None: ...


def at_root(root: Root, folder: Path, variant: str, *, replace: bool) -> dict[str, Path | bytes]:
    """The files of an unpacked layer by where a Space looks for them. The config is that of the repository with what these packages are
    for; whatever else is in it stays.

    Raises BadInput for a variant that cannot be, and unless `replace` where they would take the place of packages of something else,
    or of somebody's own: the Spaces that load them would break.
    """
    if variant and not _VARIANT.fullmatch(variant):
        raise BadInput(f"--variant {variant!r} is no name of a variant.", remedy="letters, digits, dots and hyphens, as fp8.")
    packages: dict[str, Path | bytes] = {_named(path.relative_to(folder), variant): path for path in sorted(folder.rglob(PACKAGE))}
    config = f"config.{variant}.json" if variant else CONFIG
    there, ours = _object(root.read(config, limit=_MAX_CONFIG)), _object((folder / CONFIG).read_bytes())
    if not replace:
        _check(root, config, there, {_named(Path(name, PACKAGE), variant): (name, told) for name, told in ours[_OWN].items()})
    return {**packages, config: _encode(_merged(there, ours[_OWN]))}


def _merged(there: Mapping[str, Any], folders: Mapping[str, Any]) -> dict[str, Any]:
    """The config with our packages; the kernels that any folder's need, each at its commit, and those that somebody else asked for."""
    known = before if isinstance(before := there.get(_OWN), dict) else {}
    now = {**known, **folders}
    merged = {**there, _OWN: now}
    listed = asked if isinstance(asked := there.get(_KERNELS), list) else []
    others = [kernel for kernel in listed if kernel not in _asked(known)]
    kernels = [*others, *(kernel for kernel in _asked(now) if kernel not in others)]
    return {**merged, _KERNELS: kernels} if kernels or _KERNELS in there else merged


def _asked(folders: Mapping[str, Any]) -> list[Any]:
    """The kernels that the packages of these folders call, each once."""
    found: list[Any] = []
    for told in folders.values():
        asked = told.get(_KERNELS) if isinstance(told, dict) else None
        found += [kernel for kernel in asked if kernel not in found] if isinstance(asked, list) else []
    return found


def _named(path: Path, variant: str) -> str:
    if not variant:
        return path.as_posix()
    if path.parts[0] == "package":
        raise BadInput("--variant: a package of a whole component has none.", remedy="push it to a repository of its own.")
    return Path(f"{path.parts[0]}.{variant}", *path.parts[1:]).as_posix()


def _check(root: Root, config: str, there: dict[str, Any], ours: Mapping[str, tuple[str, dict[str, Any]]]) -> None:
    """`ours`: by where a package goes its folder's name in the config, and what that says."""
    if others := sorted({*there} - {_OWN, _KERNELS}):
        raise BadInput(
            f"the repository has a {config} that is of something else: it says {', '.join(others[:3])}.",
            remedy="push to a repository of artifacts; --replace adds to that file.",
        )
    for path in root.sizes(sorted(ours)):
        name, told = ours[path]
        known = (there.get(_OWN) or {}).get(name)
        if not isinstance(known, dict):
            said = "that aot did not make"
        elif moved := [part for part in _SAME if known.get(part) != told.get(part)]:
            said = f"for {', '.join(f'{part} {known.get(part)}' for part in moved)}"
        else:
            continue
        raise BadInput(
            f"the repository has {path} {said}, and Spaces may load it.",
            remedy="--variant NAME puts these beside it, --replace in its place; or push to another repository.",
        )


def _object(raw: bytes | None) -> dict[str, Any]:
    """What a config says; of what is none, that it is something else."""
    try:
        found = json.loads(raw or b"{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"no JSON object": True}


def _encode(config: dict[str, Any]) -> bytes:
    return f"{json.dumps(config, indent=1)}\n".encode()
