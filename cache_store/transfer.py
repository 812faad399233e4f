"""Transfer: the only code that moves an artifact's bytes from one store to another."""

import hashlib
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from aot.cache_store.digest import CHUNK, Digest, chunks
from aot.cache_store.errors import Corrupt, Missing, StoreFull, Unreachable, named
from aot.cache_store.layer import verify
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Layer, Manifest
from aot.cache_store.patience import PULL_SECONDS, Deadline, retried
from aot.cache_store.progress import Told, silent
from aot.cache_store.store import Ref, Store, WritableStore, missing_blob
from aot.cache_store.trust import Admitted

_SPARE = 64 << 20  # bytes of disk that a download leaves free


def pull(
    admitted: Admitted,
    raw: bytes,
    envelope: bytes | None,
    *,
    source: Store,
    local: LocalStore,
    deadline: Deadline | None = None,
    told: Told = silent,
) -> None:
    """Bring an admitted artifact, of these bytes and signatures, into the local store.

    What an earlier attempt left is gone on with, also one of another process. Nothing is visible before all of it is here.
    Raises Corrupt when the source's bytes are not those promised, Missing, StoreFull, TimedOut, Denied, Unreachable.
    """
    manifest, origins = admitted.manifest, source.origins(admitted.digest)
    deadline = deadline or Deadline(PULL_SECONDS, f"the download of {manifest.name}")
    while True:
        for layer in manifest.layers:
            fetch(layer, source, local, deadline=deadline, told=told)
        try:
            local.commit(Ref.of(manifest), raw, {}, envelope=envelope, origins=origins)
            return
        except Missing:  # a collect took a layer that nothing referred to yet
            deadline.check()


@runtime_checkable
class Telling(Protocol):
    """A store that tells how its own uploads go on."""

    told: Told


def push(ref: Ref, *, source: LocalStore, target: WritableStore, told: Told = silent) -> Digest:
    """Copy an artifact of the local store to another, in one commit where the other has commits. Every layer is hashed before.

    Raises Missing, Corrupt for what is not here as promised; Denied, StoreFull, Busy, Unreachable for the target.
    """
    digest = source.resolve(ref)
    if digest is None:
        raise Missing(f"there is no artifact {ref} to push.", remedy="`aot ls` lists what there is.")
    raw = source.manifest(digest)
    paths = {}
    for layer in Manifest.parse(raw).layers:
        path = source.blob_path(layer.digest)
        if path is None:
            raise missing_blob(layer.digest)
        with source.open_blob(layer.digest) as blob:
            verify(layer, blob)
        paths[layer.digest] = path
    if isinstance(target, Telling):
        target.told = told
    return target.commit(ref, raw, paths, envelope=source.envelope(digest))


def fetch(layer: Layer, source: Store, local: LocalStore, *, deadline: Deadline, told: Told = silent) -> None:
    """Download one layer into the local store unless it is there, resuming a partial file. Raises as `pull` does."""
    with local.receiving(layer.digest, seconds=deadline.left) as part:
        if part is None:
            told(layer.size)
            return
        resumed = part.exists()
        try:
            _receive(layer, source, part, deadline=deadline, told=told)
        except Corrupt:  # perhaps only what an earlier attempt had left, or this one connection; the second time it is the source
            if not resumed:
                raise
            _receive(layer, source, part, deadline=deadline, told=told)
        local.keep(layer.digest, part)


def _receive(layer: Layer, source: Store, part: Path, *, deadline: Deadline, told: Told) -> None:
    with named(part), open(part, "ab+", opener=_private) as file:
        incoming = _Incoming(layer, file, told)
        _check_room(part, layer.size - incoming.size)
        try:
            retried(lambda: incoming.go_on(source.open_blob(layer.digest), deadline), deadline=deadline, gained=lambda: incoming.size)
            incoming.check()
        except Corrupt:
            part.unlink(missing_ok=True)
            raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed + _SPARE:
        raise StoreFull(
            f"{needed} bytes are to be downloaded to {part.parent}, and {free} are free.",
            remedy="free some space, run `aot prune --older-than 30d`, or set AOT_HOME to a larger disk.",
        )


class _Incoming:
    """A layer on its way into a file, hashed as it comes; what the file held already is hashed first."""

    def __init__(self, layer: Layer, file: BinaryIO, told: Told) -> None:
        self._layer, self._file, self._told = layer, file, told
        self._state, self.size = hashlib.sha256(), 0
        self._waiting: list[bytes] = []
        # one worker: in order, and beside the network, for hashing leaves the interpreter to others
        self._worker, self._hashing = ThreadPoolExecutor(1), Future[None]()
        self._hashing.set_result(None)
        file.seek(0)
        for chunk in chunks(file):
            self._state.update(chunk)
            self.size += len(chunk)
        told(self.size)

    def go_on(self, opened: AbstractContextManager[BinaryIO], deadline: Deadline) -> None:
        """Receive the rest. Raises Unreachable when the stream ends early, Corrupt when it does not end."""
        if self.size >= self._layer.size:
            return
        with opened as blob:
            blob.seek(self.size)  # before anything is asked: so only what is missing is
            _check_total(blob, self._layer)
            while chunk := blob.read(CHUNK):
                deadline.check()
                self._write(chunk)
        if self.size < self._layer.size:
            raise Unreachable(f"blob {self._layer.digest.short} ended after {self.size} of {self._layer.size} bytes.", remedy="try again.")

    def _write(self, chunk: bytes) -> None:
        if self.size + len(chunk) > self._layer.size:
            raise Corrupt(f"blob {self._layer.digest.short} is longer than promised.", culprit=str(self._layer.digest))
        self._file.write(chunk)
        self.size += len(chunk)
        self._waiting.append(chunk)
        if sum(map(len, self._waiting)) >= CHUNK:
            self._hash()
        self._told(len(chunk))

    def _hash(self) -> None:
        self._hashing.result()  # at most one batch waits: memory stays bounded
        batch, self._waiting = b"".join(self._waiting), []
        self._hashing = self._worker.submit(self._state.update, batch)

    def check(self) -> None:
        """Raises Corrupt unless it is, byte for byte, what was promised."""
        self._hash()
        self._hashing.result()
        self._worker.shutdown()
        self._file.flush()
        if self.size != self._layer.size or self._state.hexdigest() != self._layer.digest.hex:
            raise Corrupt(f"blob {self._layer.digest.short}: sha256 mismatch.", culprit=str(self._layer.digest))


def _check_total(blob: BinaryIO, layer: Layer) -> None:
    """Where the store tells how long it is, a page that asks to log in is not taken for the beginning of a layer."""
    total = getattr(blob, "total", None)
    if total is not None and total != layer.size:
        raise Unreachable(f"blob {layer.digest.short}: the store offers {total} bytes, {layer.size} are promised.", remedy="try again.")
