"""MemoryStore: a store in a dict, for tests and for artifacts that need not outlive the process."""

import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt
from aot.cache_store.manifest import Manifest
from aot.cache_store.signing import merge
from aot.cache_store.store import EVERYTHING, Entry, Ref, leading_to, missing_blob, missing_manifest, read_entries, read_manifest


class MemoryStore:
    """Fulfils PrunableStore."""

    def __init__(self, location: str = "memory:") -> None:
        self.location = location
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[Digest, bytes] = {}
        self.envelopes: dict[Digest, bytes] = {}
        self._refs: dict[Ref, Digest] = {}

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        yield from list(self._refs.items())

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        return read_entries(self)

    def resolve(self, ref: Ref) -> Digest | None:
        return self._refs.get(ref)

    def manifest(self, digest: Digest) -> bytes:
        if digest not in self.manifests:
            raise missing_manifest(digest)
        return self.manifests[digest]

    def envelope(self, digest: Digest) -> bytes | None:
        return self.envelopes.get(digest)

    def origins(self, digest: Digest) -> frozenset[str]:
        return frozenset({self.location})

    def open_blob(self, digest: Digest) -> closing[BinaryIO]:
        if digest not in self.blobs:
            raise missing_blob(digest)
        return closing(io.BytesIO(self.blobs[digest]))

    def commit(self, ref: Ref, manifest: bytes, blobs: Mapping[Digest, Path], *, envelope: bytes | None = None) -> Digest:
        found = {digest: path.read_bytes() for digest, path in blobs.items() if digest not in self.blobs}
        for digest, data in found.items():
            if Digest.of(data) != digest:
                raise Corrupt(f"{blobs[digest]} does not hash to {digest.short}.", culprit=str(digest))
        for layer in Manifest.parse(manifest).layers:
            if layer.digest not in {*self.blobs, *found}:
                raise missing_blob(layer.digest)
        self.blobs |= found
        digest = Digest.of(manifest)
        if signed := merge(self.envelopes.get(digest), envelope):
            self.envelopes[digest] = signed
        self.manifests[digest] = manifest
        self._refs[ref] = digest
        return digest

    def quarantine(self, culprit: str) -> None:
        for ref in list(leading_to(self, culprit)):
            self.remove(ref)
        self.blobs = {digest: data for digest, data in self.blobs.items() if str(digest) != culprit}
        self.manifests = {digest: raw for digest, raw in self.manifests.items() if str(digest) != culprit}

    def remove(self, ref: Ref) -> None:
        self._refs.pop(ref, None)

    def collect(self) -> int:
        kept = set(self._refs.values())
        layers = {layer.digest for digest in kept for layer in read_manifest(self, digest).layers}
        before = self._size()
        self.manifests = {digest: raw for digest, raw in self.manifests.items() if digest in kept}
        self.envelopes = {digest: raw for digest, raw in self.envelopes.items() if digest in kept}
        self.blobs = {digest: data for digest, data in self.blobs.items() if digest in layers}
        return before - self._size()

    def _size(self) -> int:
        return sum(map(len, [*self.blobs.values(), *self.manifests.values()]))
