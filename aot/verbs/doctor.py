"""Doctor: what this machine has of all that building and serving need, and the remedy for what it lacks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

from aot.cache_store.errors import CodedError
from aot.environment import GRAPH_CACHE, signing_key

SERVE, BUILD, BUILD_GPU = "serve", "build", "build for GPUs"
_ROOM = 2 << 30  # bytes that a build may take beside the store
_ROOM_TO_SERVE = 256 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what needs it, what was found, and the remedy where that is not enough."""

    what: str
    needed_to: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.remedy


def doctor(environ: Mapping[str, str]) -> list[Finding]:
    """Look at everything. Nothing is compiled or fetched, and torch is not imported."""
    return [_looked(what, needed_to, look) for what, needed_to, look in _checks(environ)]


Look = Callable[[], tuple[str, str]]  # what was found, and the remedy; or a CodedError that says both


def _looked(what: str, needed_to: str, look: Look) -> Finding:
    try:
        return Finding(what, needed_to, *look())
    except CodedError as error:
        return Finding(what, needed_to, error.message, error.remedy or "see the message.")
    except OSError as error:
        return Finding(what, needed_to, f"{type(error).__name__}: {error}", "make it readable and writable for this user.")


def _checks(environ: Mapping[str, str]) -> Iterator[tuple[str, str, Look]]:
    yield "torch", SERVE, _torch
    yield "diffusers", SERVE, lambda: _package("diffusers", "pip install diffusers.")
    yield "GPU", SERVE, _gpus
    yield "store", SERVE, lambda: _store(environ)
    yield "keys", SERVE, lambda: _keys(environ)
    yield "lock file", SERVE, lambda: _lock(environ)
    yield GRAPH_CACHE, SERVE, lambda: _graph_cache(environ)
    yield "temporary folder", SERVE, lambda: _room(Path(tempfile.gettempdir()), _ROOM_TO_SERVE)
    yield "C++ compiler", BUILD, lambda: _compiler(environ)
    yield "room", BUILD, lambda: _room(_root(environ), _ROOM)
    yield "triton", BUILD_GPU, lambda: _package("triton", "pip install triton.")
    yield "torch for CUDA", BUILD_GPU, _cuda
    yield "ptxas", BUILD_GPU, _ptxas
    yield "CUDA headers", BUILD_GPU, lambda: _toolkit(environ)


def _torch() -> tuple[str, str]:
    from aot.machine.target import TORCH_BELOW, TORCH_MIN

    found = Version(version("torch"))
    if TORCH_MIN <= Version(found.base_version) < TORCH_BELOW:
        return str(found), ""
    return str(found), f"install torch from {TORCH_MIN} to below {TORCH_BELOW}."


def _package(name: str, remedy: str) -> tuple[str, str]:
    try:
        return version(name), ""
    except PackageNotFoundError:
        return "not installed", remedy


def _gpus() -> tuple[str, str]:
    from aot.machine.device import gpus_here
    from aot.machine.sku import SKUS

    known = {sku.name for sku in SKUS.values()}
    found = gpus_here()
    strange = [name for name in found if name not in known]
    return ", ".join(found) or "none: graphs for this CPU are served", f"{strange[0]} has no row in `aot targets`." if strange else ""


def _root(environ: Mapping[str, str]) -> Path:
    from aot.cache_store.root import default_root

    return default_root(environ)


def _store(environ: Mapping[str, str]) -> tuple[str, str]:
    from aot.cache_store.local import LocalStore

    store = LocalStore(_root(environ))
    many = sum(1 for _ in store.refs())
    blank = any(map(str.isspace, str(store.root)))
    return f"{store.root}: {many} artifacts", "set AOT_HOME to a path without blanks: torch's compiler breaks on them." if blank else ""


def _keys(environ: Mapping[str, str]) -> tuple[str, str]:
    from aot.cache_store.signing import SigningKey, machine_key
    from aot.cache_store.trust import Trust

    own = machine_key(_root(environ))
    named = [path] if (path := signing_key(environ)) else []
    signing = [f"{SigningKey(path).public.id[:12]} at {path}" for path in (*([own] if own.exists() else []), *named)]
    listed = len(Trust.read(_root(environ)).rules)
    return f"signs with {', '.join(signing) or 'a key that the first build makes'}; {listed} listed as trusted", ""


def _lock(environ: Mapping[str, str]) -> tuple[str, str]:
    from aot.cache_store.lock import Lock, lock_file

    file = lock_file(environ)
    if not file.exists():
        return "none", ""
    return f"{file}: {len(Lock.read(file).pins)} pins", ""


def _graph_cache(environ: Mapping[str, str]) -> tuple[str, str]:
    from aot.cache_store.location import open_cached

    said = environ.get(GRAPH_CACHE, "")
    if said in ("", "0"):
        return "not set: plain torch.compile, no artifact is read", ""
    if said != "1":
        open_cached(said, _root(environ))  # raises where it is no location
    return said, ""


def _room(folder: Path, needed: int) -> tuple[str, str]:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        return f"{there} cannot be written to", "make it writable, or name another (AOT_HOME, TMPDIR)."
    return f"{free >> 30} GiB free at {there}", "" if free >= needed else f"make room: {needed >> 20} MiB are needed."


def _compiler(environ: Mapping[str, str]) -> tuple[str, str]:
    from aot.compiler.toolchain import find_compiler

    return str(find_compiler(environ)), ""


def _cuda() -> tuple[str, str]:
    spec = find_spec("torch")
    library = Path(spec.origin).parent / "lib" / "libtorch_cuda.so" if spec and spec.origin else None
    if library and library.exists():
        return f"torch {version('torch')} has it", ""
    return f"torch {version('torch')} is built without CUDA", "install the ordinary Linux wheel of torch, which has it."


def _ptxas() -> tuple[str, str]:
    spec = find_spec("triton")
    own = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "ptxas" if spec and spec.origin else None
    found = str(own) if own and own.exists() else shutil.which("ptxas")
    return (found, "") if found else ("none", "pip install triton, which brings one.")


def _toolkit(environ: Mapping[str, str]) -> tuple[str, str]:
    from aot.compiler.toolkit import find_toolkit

    return str(find_toolkit(environ, tuple(sys.path)).home), ""
