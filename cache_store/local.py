"""LocalStore: a store in a directory. Survives being killed at any operation; see FORMAT.md, *Commit protocol*."""

import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed, Missing, TimedOut, named
from aot.cache_store.exclusive import exclusive
from aot.cache_store.index import Index
from aot.cache_store.manifest import MAX_MANIFEST, Manifest
from aot.cache_store.plain import in_the_way, is_plain, open_plain, read_plain
from aot.cache_store.root import open_root
from aot.cache_store.signing import MAX_ENVELOPE, merge
from aot.cache_store.store import EVERYTHING, Entry, Ref, leading_to, missing_blob, missing_manifest, read_manifest
from aot.cache_store.written import delete, in_use, put, sync, temporary

MAX_ORIGINS = 64 << 10  # bytes
_VOUCHED = ("blobs", "manifests", "signatures")  # the directories of files named by a digest that are taken out of use together


class LocalStore:
    """Fulfils PrunableStore. `root` is made on first use, 0700, and refused when it is not ours alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = open_root(root)
        self._index = Index(self._tree, lambda digest: read_manifest(self, digest))

    def __str__(self) -> str:
        return str(self.root)

    @property
    def location(self) -> str:
        return str(self.root)

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        with named(self._tree):
            found = sorted((self._tree / "refs").glob("*/*"))
        for path in found:
            with suppress(Malformed, Corrupt):  # a stray file is not a ref; who asks for a damaged one is told
                ref = Ref(path.parent.name, Digest(path.name))
                if digest := self._resolve(ref):
                    yield ref, digest

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        with named(self._tree):
            yield from self._index.entries(about, within, newest)

    def resolve(self, ref: Ref) -> Digest | None:
        try:
            return self._resolve(ref)
        except Malformed as error:
            raise Corrupt(f"ref {ref.name}@{ref.key.short} does not hold a digest.", culprit=str(ref)) from error

    def _resolve(self, ref: Ref) -> Digest | None:
        with named(self._tree):
            try:
                text = read_plain(self._ref(ref), culprit=str(ref)).decode(errors="replace")
            except FileNotFoundError:
                return None
        return Digest.parse(text.rstrip("\n"))

    def manifest(self, digest: Digest) -> bytes:
        with self._opened("manifests", digest, missing_manifest(digest)) as file:
            return file.read(MAX_MANIFEST + 1)

    def envelope(self, digest: Digest) -> bytes | None:
        return self._small("signatures", digest, MAX_ENVELOPE + 1)

    def origins(self, digest: Digest) -> frozenset[str]:
        """Where it was pulled from; this store itself for what was built here."""
        found = self._small("origins", digest, MAX_ORIGINS)
        return frozenset(found.decode(errors="replace").split("\n")) - {""} if found else frozenset({self.location})

    def open_blob(self, digest: Digest) -> AbstractContextManager[BinaryIO]:
        return self._opened("blobs", digest, missing_blob(digest))

    def commit(
        self, ref: Ref, manifest: bytes, blobs: Mapping[Digest, Path], *, envelope: bytes | None = None, origins: Collection[str] = ()
    ) -> Digest:
        """As every WritableStore; `origins` are where the artifact was pulled from, none if it was made here."""
        digest = Digest.of(manifest)
        layers = [layer.digest for layer in Manifest.parse(manifest).layers]
        with self._locked():
            for path in (self._ref(ref), *(self._tree / kind / digest.hex for kind in (*_VOUCHED[1:], "origins"))):
                self._clear(path)
            while True:
                for layer in layers:
                    self._put_blob(layer, blobs.get(layer))
                self._put(self._tree / "manifests" / digest.hex, manifest)
                # `collect` moves a blob aside before it looks at the manifests: had it taken one of ours, we see it now
                if all(is_plain(self._blob(layer)) for layer in layers):
                    break
            if signed := merge(self.envelope(digest), envelope):
                self._put(self._tree / "signatures" / digest.hex, signed)
            if origins:
                known = {*origins, *(self.origins(digest) - {self.location})}
                self._put(self._tree / "origins" / digest.hex, "\n".join(sorted(known)).encode())
            self._put(self._ref(ref), f"{digest}\n".encode())
        return digest

    def quarantine(self, culprit: str) -> None:
        with self._locked():
            for ref in list(leading_to(self, culprit)):
                self.remove(ref)
            name, _, hex = culprit.rpartition(":")
            if "@" in name:  # a ref that cannot be read leads nowhere
                self._set_aside(self._ref(Ref.parse(culprit)))
                return
            for kind in _VOUCHED:
                self._set_aside(self._tree / kind / hex)
            self._clear(self._tree / "origins" / hex)

    def remove(self, ref: Ref) -> None:
        with named(self._tree):
            self._ref(ref).unlink(missing_ok=True)
            with suppress(OSError):  # another ref of that name is still there
                self._ref(ref).parent.rmdir()

    def collect(self) -> int:
        with self._locked():
            freed = 0
            for directory in ("manifests", "signatures", "origins"):
                freed += self._sweep(directory, lambda: {digest.hex for _, digest in self.refs()})
            freed += self._sweep("blobs", self._layers)
            freed += self._sweep("parts", self._receiving)
            for directory in ("quarantine", "tmp"):
                freed += self._sweep(directory, set)
        return freed

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A private directory on the store's own disk, removed afterwards; `collect` removes one that was left."""
        path = self._temporary()
        with named(path):
            path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            delete(path)

    def blob_path(self, digest: Digest) -> Path | None:
        """The blob's file, for who sends it elsewhere; None where it is not in this store."""
        return self._blob(digest) if is_plain(self._blob(digest)) else None

    @contextmanager
    def receiving(self, digest: Digest, *, seconds: float) -> Iterator[Path | None]:
        """The right to write the blob's partial file, which outlives this process; None if the blob is there, perhaps by now.

        Only one process at a time gets it: of a hundred that pull one layer one downloads it. On a disk without locks each
        downloads to a file of its own. Raises TimedOut.
        """
        with ExitStack() as held:
            with named(self._tree):
                try:
                    alone = held.enter_context(exclusive(self._lock(f"{digest.hex}.part"), seconds=max(seconds, 0)))
                except TimeoutError as error:
                    raise TimedOut(
                        f"blob {digest.short}: another process has been downloading it for {seconds:.0f} s.",
                        remedy="end that, or try again.",
                    ) from error
            part = self._tree / "parts" / digest.hex
            if not alone:
                part = self._temporary()
                held.callback(part.unlink, missing_ok=True)
            self._clear(part)
            yield None if is_plain(self._blob(digest)) else part

    def keep(self, digest: Digest, part: Path) -> None:
        """Make the partial file, complete and verified by the caller, the blob."""
        with named(part):
            with open(part, "rb") as file:
                os.fsync(file.fileno())
            part.chmod(0o400)
            self._clear(self._blob(digest))
            part.rename(self._blob(digest))
            sync(self._tree / "blobs")

    def _receiving(self) -> set[str]:
        """Partial files that a process is writing now."""
        found = set()
        for path in (self._tree / "parts").iterdir():
            try:
                with exclusive(self._lock(f"{path.name}.part"), seconds=0):
                    pass
            except TimeoutError:
                found.add(path.name)
        return found

    @contextmanager
    def building(self, ref: Ref) -> Iterator[bool]:
        """Hold the right to build `ref`; yields whether another process held it first. Saves work, nothing more."""
        lock, waited = self._lock(ref.key.hex), False
        with ExitStack() as held:
            with named(self._tree):
                try:
                    held.enter_context(exclusive(lock, seconds=0))
                except TimeoutError:
                    held.enter_context(exclusive(lock))
                    waited = True
            yield waited

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a commit and a collect from doing each other's work twice; both are right without it."""
        with ExitStack() as held:
            with named(self._tree):
                held.enter_context(exclusive(self._lock("commit")))
            yield

    def _lock(self, name: str) -> Path:
        return self._tree / "locks" / f"{name}.lock"

    def _ref(self, ref: Ref) -> Path:
        return self._tree / "refs" / ref.name / ref.key.hex

    def _blob(self, digest: Digest) -> Path:
        return self._tree / "blobs" / digest.hex

    def _layers(self) -> set[str]:
        found = set()
        for path in (self._tree / "manifests").iterdir():
            with suppress(Corrupt, Missing):
                found |= {layer.digest.hex for layer in read_manifest(self, Digest(path.name)).layers}
        return found

    def _sweep(self, kind: str, keep: Callable[[], set[str]]) -> int:
        """Delete what `keep` does not name: aside first, then asked again, so that a commit under way is not robbed."""
        with named(self._tree):
            wanted, aside = keep(), {}
            for path in list((self._tree / kind).iterdir()):
                if path.name not in wanted and not in_use(path):
                    aside[path] = self._aside(path)
                    path.rename(aside[path])
            wanted = keep()
            for path in [path for path in aside if path.name in wanted]:
                aside.pop(path).rename(path)
            return sum(delete(path) for path in aside.values())

    @contextmanager
    def _opened(self, kind: str, digest: Digest, missing: Missing) -> Iterator[BinaryIO]:
        path = self._tree / kind / digest.hex
        with named(path):
            try:
                opened = open_plain(path, culprit=str(digest))
            except FileNotFoundError:
                raise missing from None
        with opened as file:
            yield file

    def _clear(self, path: Path) -> None:
        """Make way for a file where something else is: it is kept in quarantine."""
        if in_the_way(path):
            self._set_aside(path)

    def _set_aside(self, path: Path) -> None:
        with named(self._tree), suppress(FileNotFoundError):
            path.rename(self._aside(path))

    def _aside(self, path: Path) -> Path:
        """Where it goes in quarantine, under a name of its own."""
        return self._tree / "quarantine" / f"{path.name}-{secrets.token_hex(4)}"

    def _small(self, kind: str, digest: Digest, limit: int) -> bytes | None:
        """A small file about a manifest; None where there is none."""
        try:
            with self._opened(kind, digest, missing_manifest(digest)) as file:
                return file.read(limit)
        except Missing:
            return None

    def _put_blob(self, digest: Digest, source: Path | None) -> None:
        if is_plain(self._blob(digest)):
            return
        self._clear(self._blob(digest))
        if source is None:
            raise missing_blob(digest)
        with open(source, "rb") as stream:
            self._put(self._blob(digest), stream, digest=digest)

    def _put(self, path: Path, content: bytes | BinaryIO, *, digest: Digest | None = None) -> None:
        put(path, content, by=self._temporary(), digest=digest)

    def _temporary(self) -> Path:
        return temporary(self._tree / "tmp")
