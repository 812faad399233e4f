"""Hub kernel: a kernel of a repository of the Hub, by commit and digest, and its files in this machine's cache.

`kernels.get_kernel` fetches `build/VARIANT`: a library, and Python beside it. Its repositories are of the Hub's type `kernel`, and older
ones models. Anything else of a repository is one file. Layout and names of kernels 0.17.2.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from aot.artifact.operators import libraries
from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError, Corrupt, Missing, Unreachable, named
from aot.errors import LoadFailed, first_line

_CACHED = re.compile(r"(model|kernel)s--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)")
_TEXT = re.compile(r"hf://(kernels/)?([^/@\s]+/[^/@\s]+)@([0-9a-f]{40})/(\S+) (sha256:[0-9a-f]{64})(?: with (sha256:[0-9a-f]{64}))?")
_BYTECODE = "__pycache__"


@dataclass(frozen=True, slots=True)
class HubKernel:
    """`parse(str(k)) == k`."""

    kind: str  # the repository's: kernel or model
    repository: str
    revision: str  # a commit
    path: str  # what registers the operators, within the repository
    digest: Digest  # of that file
    beside: Digest | None = None  # of all files of its build, where it has one

    def __str__(self) -> str:
        beside = f" with {self.beside}" if self.beside else ""
        return f"{self.at}/{self.path} {self.digest}{beside}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where the text is of something else. Raises Malformed."""
        found = _TEXT.fullmatch(text)
        if found is None or {".", "..", ""} & {*found[4].split("/")}:
            return None
        kernels, repository, revision, path, digest, beside = found.groups()
        kernel = cls(
            "kernel" if kernels else "model", repository, revision, path, Digest.parse(digest), Digest.parse(beside) if beside else None
        )
        return kernel if kernel.beside is None or kernel._build else None

    @classmethod
    def of(cls, file: Path) -> Self | None:
        """That of a file in the Hub's cache, by the newest snapshot that has it; None for any other file."""
        for path in _in_snapshots(file):
            if found := _CACHED.search(str(path)):
                kind, organisation, name, revision, inside = found.groups()
                with path.open("rb") as opened:
                    digest = Digest.of_stream(opened)
                alone = cls(kind, f"{organisation}/{name}", revision, inside, digest)
                build = _top(path, inside) / alone._build
                return replace(alone, beside=_tree(build)) if alone._build and _is_whole(build) else alone
        return None

    @property
    def at(self) -> str:
        """The repository and the commit, as the Hub's client writes them."""
        return f"hf://{'kernels/' * (self.kind == 'kernel')}{self.repository}@{self.revision}"

    @property
    def is_whole(self) -> bool:
        """Whether it is a build that `kernels.get_kernel` fetches, and not a file of some repository."""
        return self.kind == "kernel" and self.beside is not None

    @property
    def _build(self) -> str:
        """The folder of the build that the file would be of; empty where it can be of none."""
        parts = PurePosixPath(self.path).parts
        return f"{parts[0]}/{parts[1]}" if parts[0] == "build" and len(parts) > 2 else ""

    def fetch(self, *, anew: bool = True) -> Path:
        """The file in the Hub's cache, with its build beside it: fetched unless they are there, as promised. Without `anew` it is asked
        of nobody.

        Raises Corrupt, Missing, Denied, Unreachable.
        """
        from huggingface_hub import constants

        from aot.cache_store.hub_errors import hub_errors

        here = self._cached()
        if here and self._is_sound(here):
            return here
        damaged = Corrupt(f"kernel {self.at}/{self._build if self.beside else self.path} is not the bytes that were promised.", culprit="")
        if not anew or constants.HF_HUB_OFFLINE:
            if here:
                raise damaged
            raise Missing(f"kernel {self.at}/{self.path} is not on this machine.", remedy="`aot pull` fetches it.")
        try:
            with hub_errors(self.at):
                self._download()
        except CodedError:
            raise
        except Exception as error:  # of the client, of what is beneath it, of this machine's disk: a kernel costs a miss, never a process
            raise Unreachable(
                f"kernel {self.at}/{self.path} cannot be fetched: {first_line(error)}.", remedy="see that it can be."
            ) from error
        here = self._cached()
        if here is None or not self._is_sound(here):
            raise damaged
        return here

    def load(self) -> None:
        """Have its operators in this process. Raises LoadFailed, Corrupt, Missing, Unreachable, before anything of it is run."""
        import torch

        path = self.fetch()
        try:
            if not self._import(path) and path.suffix == ".so":
                torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
        except OSError as error:
            raise LoadFailed(f"kernel {self}: {first_line(error)}.", remedy="it is for another machine or torch than this.") from error

    def is_of(self, file: Path) -> bool:
        """Whether a file that this process has loaded is that very one. In the Hub's cache a large file is named by its sha256."""
        resolved = file.resolve()
        if resolved.parent.name == "blobs" and len(resolved.name) == len(self.digest.hex):
            return resolved.name == self.digest.hex
        with named(file), file.open("rb") as opened:
            return Digest.of_stream(opened) == self.digest

    def _import(self, path: Path) -> bool:
        """As `kernels.get_kernel` would: functions that were traced are then here to be compared, and the program shares the module.

        Whether that worked: a graph itself needs no more than the library. Not where it asks for other kernels, which nobody pinned.
        """
        folder = _top(path, self.path) / self._build
        if not self.beside or _depends(folder):
            return False
        # no such package, another version of it, a module that this one wants: the library alone will do
        with suppress(Exception), _from_source(folder):
            from kernels import get_local_kernel

            get_local_kernel(folder)
            return True
        return False

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        here = try_to_load_from_cache(self.repository, self.path, **self._where())
        return Path(here) if isinstance(here, str) else None

    def _download(self) -> None:
        from huggingface_hub import hf_hub_download, snapshot_download

        if not self.beside:
            hf_hub_download(self.repository, self.path, **self._where(), force_download=True)
            return
        wanted, unwanted = [f"{self._build}/*"], ["*.pyc", f"*{_BYTECODE}/*"]
        snapshot_download(self.repository, **self._where(), allow_patterns=wanted, ignore_patterns=unwanted, force_download=True)

    def _where(self) -> dict[str, Any]:
        """KERNELS_CACHE is where `kernels` keeps what it fetches, and nothing else is."""
        cache = os.environ.get("KERNELS_CACHE") if self.beside else None
        return {"revision": self.revision, "repo_type": self.kind, "cache_dir": cache}

    def _is_sound(self, file: Path) -> bool:
        with named(file), file.open("rb") as opened:
            sound = Digest.of_stream(opened) == self.digest
        return sound and (self.beside is None or _tree(_top(file, self.path) / self._build) == self.beside)


def _in_snapshots(file: Path) -> list[Path]:
    """Its names in a snapshot of the Hub's cache: the one under which Python loaded it, else the newest that leads to it."""
    if "/snapshots/" in str(file):
        return [file]
    loaded = [*libraries(), *(Path(name) for module in [*sys.modules.values()] if (name := getattr(module, "__file__", None)))]
    if same := [path for path in loaded if "/snapshots/" in str(path) and path.resolve() == file.resolve()]:
        return same[:1]
    for folder in file.parents:
        if folder.name.startswith(("models--", "kernels--")):
            found = [path for path in (folder / "snapshots").rglob(f"*{file.suffix}") if path.resolve() == file.resolve()]
            return sorted(found, key=lambda path: path.lstat().st_mtime, reverse=True)
    return []


def _top(file: Path, inside: str) -> Path:
    """The snapshot of a file that is at `inside` there."""
    return file.parents[len(PurePosixPath(inside).parts) - 1]


def _is_whole(build: Path) -> bool:
    """Whether it was fetched as a kernel is, and not a file of it alone."""
    return any((build / name).is_file() for name in ("metadata.json", "__init__.py"))


def _tree(folder: Path) -> Digest:
    """Of all files in it but for what Python compiled and keeps beside its source. Elsewhere bytecode is a module like any other."""
    found = dict[str, str]()
    for path in folder.rglob("*"):
        if path.is_file() and not _is_bytecode(path):
            with named(path), path.open("rb") as opened:
                found[path.relative_to(folder).as_posix()] = str(Digest.of_stream(opened))
    return Digest.of(encode(found))


def _is_bytecode(path: Path) -> bool:
    return path.parent.name == _BYTECODE and path.suffix == ".pyc"


@contextmanager
def _from_source(folder: Path) -> Iterator[None]:
    """Within, what Python compiled before is not run in the place of a source that was compared: no digest is of it. It is taken away, for
    Python makes it anew; where it cannot be, it is not looked for."""
    before = sys.pycache_prefix
    with ExitStack() as stack:
        try:
            for path in [path for path in folder.rglob("*.pyc") if _is_bytecode(path)]:
                path.unlink()
        except OSError:
            stack.callback(setattr, sys, "pycache_prefix", before)
            sys.pycache_prefix = stack.enter_context(tempfile.TemporaryDirectory(prefix="aot-bytecode-"))
        yield


def _depends(folder: Path) -> bool:
    """Whether a build asks for other kernels. One whose description cannot be read may."""
    try:
        told = json.loads((folder / "metadata.json").read_bytes())
        return any("kernel" in name and "depend" in name and told[name] for name in told)
    except (OSError, ValueError, TypeError):
        return True
