"""Store: a place that keeps blobs by digest and remembers which manifest a key led to.

Capability is by type: what only reads takes a `Store`, what builds a `WritableStore`, what cleans a `PrunableStore`.
Every store keeps one invariant: *a ref leads to a manifest, and a manifest to every one of its layers, byte for byte.*
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self, runtime_checkable

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed, Missing
from aot.cache_store.manifest import MAX_MANIFEST, Manifest, check_name


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """What was asked: an artifact's name and the digest of its key. Text form `name@sha256:…`; `parse(str(r)) == r`."""

    name: str
    key: Digest

    def __post_init__(self) -> None:
        check_name(self.name)

    def __str__(self) -> str:
        return f"{self.name}@{self.key}"

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """What a manifest itself says that it answers, whatever name it was found under."""
        return cls(manifest.name, Digest.of(encode(manifest.key)))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises Malformed unless `text` is a name, `@` and a digest."""
        name, _, key = text.partition("@")
        return cls(name, Digest.parse(key))


EVERYTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing tells of an artifact without its layers: the manifest's head. A hint, never trusted: only manifests are verified."""

    ref: Ref
    digest: Digest
    created: str
    size: int  # bytes, compressed
    key: dict[str, str]
    producer: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    signers: tuple[str, ...] = field(default=(), compare=False)  # ids of keys that are said to have signed it, where a store tells

    @classmethod
    def of(cls, ref: Ref, digest: Digest, manifest: Manifest, *, signers: Iterable[str] = ()) -> Self:
        told = (manifest.created, manifest.size, manifest.key, manifest.producer, manifest.measured, manifest.certificate)
        return cls(ref, digest, *told, signers=tuple(signers))


@runtime_checkable
class Store(Protocol):
    """Reading. All methods raise Unreachable when the store cannot be read at all, Denied when it lets nobody like us in."""

    @property
    def location(self) -> str:
        """What `open_store` opens it by, without a revision: the name that trust rules know it by."""

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        """Every ref and the manifest it leads to, in no particular order."""

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        """What can be told of every artifact at once, in no particular order; one whose manifest cannot be read has an empty key.

        What nobody asks for may be left out, by stores to which that saves something: artifacts of which none of the values `about`
        is in the key; those that have not all the parts `within`; all but the `newest` so many.
        """

    def resolve(self, ref: Ref) -> Digest | None:
        """The manifest that `ref` leads to, or None: not to have one is an expected answer."""

    def manifest(self, digest: Digest) -> bytes:
        """The manifest's raw bytes, unverified (see `Policy.admit`). Raises Missing."""

    def envelope(self, digest: Digest) -> bytes | None:
        """The signatures of that manifest, unverified; None when there are none."""

    def origins(self, digest: Digest) -> frozenset[str]:
        """The locations of the stores that this manifest was got from: a trust rule must cover one of them."""

    def open_blob(self, digest: Digest) -> AbstractContextManager[BinaryIO]:
        """The blob's raw bytes, seekable and unverified (see `layer.materialise`). Raises Missing."""


@runtime_checkable
class MendableStore(Store, Protocol):
    """Reading, where what proves wrong can be taken out of use."""

    def quarantine(self, culprit: str) -> None:
        """Take the digest or ref whose bytes proved wrong out of use, and every ref that leads to it."""


@runtime_checkable
class WritableStore(MendableStore, Protocol):
    """Writing."""

    def commit(self, ref: Ref, manifest: bytes, blobs: Mapping[Digest, Path], *, envelope: bytes | None = None) -> Digest:
        """Put blobs, the manifest, its signatures, then the ref; return the manifest's digest.

        All or nothing to a reader: the ref appears only when everything it leads to is there. A blob already in the
        store is not written again; signatures are added to those that are there. Raises Corrupt if a file does not hash to
        its digest, Missing if the manifest names a blob that is neither given nor there, StoreFull, Unreachable, Denied, Busy.
        """


@runtime_checkable
class PrunableStore(WritableStore, Protocol):
    """Removing."""

    def remove(self, ref: Ref) -> None:
        """Forget `ref`; its bytes stay until `collect`. Forgetting what is not there is fine."""

    def collect(self) -> int:
        """Delete what no ref leads to; return the bytes freed."""


@runtime_checkable
class Naming(Protocol):
    """A store that knows the names of its artifacts without looking at each."""

    def names(self) -> set[str]: ...


def names_in(store: Store) -> list[str]:
    """The names of all artifacts of a store."""
    return sorted(store.names() if isinstance(store, Naming) else {ref.name for ref, _ in store.refs()})


def read_manifest(store: Store, digest: Digest) -> Manifest:
    """The verified, parsed manifest. Raises Missing, Corrupt."""
    return check_manifest(store.manifest(digest), digest)


def check_manifest(raw: bytes, digest: Digest) -> Manifest:
    """Size cap, then digest, then parse: nothing is parsed before it is verified. Raises Corrupt."""
    if len(raw) > MAX_MANIFEST or Digest.of(raw) != digest:
        raise Corrupt(f"manifest {digest.short}: sha256 mismatch.", culprit=str(digest))
    try:
        return Manifest.parse(raw)
    except Malformed as error:
        raise Corrupt(f"manifest {digest.short}: {error.message}", culprit=str(digest)) from error


def read_entries(store: Store) -> Iterator[Entry]:
    """`entries` for a store that has nothing quicker than its manifests."""
    for ref, digest in store.refs():
        try:
            yield Entry.of(ref, digest, read_manifest(store, digest))
        except (Corrupt, Missing):
            yield Entry(ref, digest, created="", size=0, key={})


def read_listed(store: Store, entry: Entry) -> Manifest:
    """The manifest of a listed artifact. Raises, for one that the list could not read, what is wrong: Corrupt or Missing."""
    digest = entry.digest if entry.key else store.resolve(entry.ref)
    return read_manifest(store, digest or entry.digest)


def missing_manifest(digest: Digest) -> Missing:
    return Missing(f"manifest {digest.short} is not in this store.", remedy="`aot ls` shows what is.")


def missing_blob(digest: Digest) -> Missing:
    return Missing(f"blob {digest.short} is not in this store.", remedy="build the artifact again with `aot build`.")


def leading_to(store: Store, culprit: str) -> Iterator[Ref]:
    """The refs that cannot be kept when `culprit`, a digest or a ref in text form, is bad."""
    for ref, digest in store.refs():
        if culprit in (str(ref), str(digest)):
            yield ref
            continue
        try:
            manifest = read_manifest(store, digest)
        except (Corrupt, Missing):
            yield ref
            continue
        if any(str(layer.digest) == culprit for layer in manifest.layers):
            yield ref
