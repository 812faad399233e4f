"""LocalStore: a store in a directory. Survives being killed at any operation; see FORMAT.md, *Commit protocol*."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from cache_store.digest import Digest, chunks
from cache_store.errors import Corrupt, Malformed, Missing, named
from cache_store.manifest import MAX_MANIFEST, Manifest
from cache_store.root import open_root
from cache_store.store import Ref, leading_to, missing_blob, missing_manifest, read_manifest


class LocalStore:
    """Fulfils PrunableStore. `root` is made on first use, 0700, and refused when it is not ours alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tree = open_root(root)

    def __str__(self) -> str:
        return str(self.root)

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        with named(self._tree):
            found = sorted((self._tree / "refs").glob("*/*"))
        for path in found:
            with suppress(Malformed):  # a stray file is not a ref
                ref = Ref(path.parent.name, Digest(path.name))
                if digest := self._resolve(ref):
                    yield ref, digest

    def resolve(self, ref: Ref) -> Digest | None:
        try:
            return self._resolve(ref)
        except Malformed as error:
            raise Corrupt(f"ref {ref.name}@{ref.key.short} does not hold a digest.", culprit=str(ref)) from error

    def _resolve(self, ref: Ref) -> Digest | None:
        with named(self._tree):
            try:
                text = self._ref(ref).read_text(errors="replace")
            except FileNotFoundError:
                return None
        return Digest.parse(text.rstrip("\n"))

    def manifest(self, digest: Digest) -> bytes:
        with self._opened(self._tree / "manifests" / digest.hex, missing_manifest(digest)) as file:
            return file.read(MAX_MANIFEST + 1)

    def open_blob(self, digest: Digest) -> AbstractContextManager[BinaryIO]:
        return self._opened(self._tree / "blobs" / digest.hex, missing_blob(digest))

    def commit(self, ref: Ref, manifest: bytes, blobs: Mapping[Digest, Path]) -> Digest:
        digest = Digest.of(manifest)
        layers = [layer.digest for layer in Manifest.parse(manifest).layers]
        with self._locked():
            while True:
                for layer in layers:
                    self._put_blob(layer, blobs.get(layer))
                self._put(self._tree / "manifests" / digest.hex, manifest)
                # `collect` moves a blob aside before it looks at the manifests: had it taken one of ours, we see it now
                if all(self._blob(layer).exists() for layer in layers):
                    break
            self._put(self._ref(ref), f"{digest}\n".encode())
        return digest

    def quarantine(self, culprit: str) -> None:
        with self._locked():
            for ref in list(leading_to(self, culprit)):
                self.remove(ref)
            _, _, hex = culprit.rpartition(":")
            for kind in ("blobs", "manifests"):
                with named(self._tree), suppress(FileNotFoundError):
                    (self._tree / kind / hex).rename(self._tree / "quarantine" / f"{hex}-{secrets.token_hex(4)}")

    def remove(self, ref: Ref) -> None:
        with named(self._tree):
            self._ref(ref).unlink(missing_ok=True)
            with suppress(OSError):  # another ref of that name is still there
                self._ref(ref).parent.rmdir()

    def collect(self) -> int:
        with self._locked():
            freed = self._sweep("manifests", lambda: {digest.hex for _, digest in self.refs()})
            freed += self._sweep("blobs", self._layers)
            for directory in ("quarantine", "tmp"):
                freed += self._sweep(directory, set)
        return freed

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A private directory on the store's own disk, removed afterwards; `collect` removes one that was left."""
        path = self._tree / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        with named(path):
            path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            _delete(path)

    @contextmanager
    def building(self, ref: Ref) -> Iterator[bool]:
        """Hold the right to build `ref`; yields whether another process held it first. Saves work, nothing more."""
        lock = FileLock(self._tree / "locks" / f"{ref.key.hex}.lock", mode=0o600)
        with named(self._tree):
            try:
                lock.acquire(blocking=False)
                waited = False
            except TimeoutError:
                lock.acquire()
                waited = True
        try:
            yield waited
        finally:
            lock.release()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a commit and a collect from doing each other's work twice; both are right without it."""
        lock = FileLock(self._tree / "locks" / "commit.lock", mode=0o600)
        with named(self._tree):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

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
                if path.name not in wanted and not _in_use(path):
                    aside[path] = self._tree / "quarantine" / f"{path.name}-{secrets.token_hex(4)}"
                    path.rename(aside[path])
            wanted = keep()
            for path in [path for path in aside if path.name in wanted]:
                aside.pop(path).rename(path)
            return sum(_delete(path) for path in aside.values())

    @contextmanager
    def _opened(self, path: Path, missing: Missing) -> Iterator[BinaryIO]:
        with named(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise missing from None
        with os.fdopen(descriptor, "rb") as file:
            yield file

    def _put_blob(self, digest: Digest, source: Path | None) -> None:
        if self._blob(digest).exists():
            return
        if source is None:
            raise missing_blob(digest)
        with open(source, "rb") as stream:
            self._put(self._blob(digest), stream, digest=digest)

    def _put(self, path: Path, content: bytes | BinaryIO, *, digest: Digest | None = None) -> None:
        """Temporary file, write and hash, fsync, read-only, rename, fsync the directory."""
        temporary = self._tree / "tmp" / f"{os.getpid()}-{secrets.token_hex(8)}"
        state = hashlib.sha256()
        with named(path):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o400), "wb") as file:
                    for chunk in [content] if isinstance(content, bytes) else chunks(content):
                        state.update(chunk)
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                if digest and state.hexdigest() != digest.hex:
                    raise Corrupt(f"what was to be stored does not hash to {digest.short}.", culprit=str(digest))
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync(path.parent)


def _in_use(path: Path) -> bool:
    """Whether a file in `tmp/`, named for the process that made it, may still be written."""
    pid, dash, _ = path.name.partition("-")
    if not (dash and pid.isdigit()):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, then, and alive
        return True
    return True


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> int:
    """Remove a file or a tree; return its size in bytes."""
    if path.is_dir() and not path.is_symlink():
        freed = sum(_delete(child) for child in path.iterdir())
        path.rmdir()
        return freed
    size = path.lstat().st_size
    path.unlink()
    return size
