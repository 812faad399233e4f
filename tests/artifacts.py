"""Small artifacts for tests of bytes and names."""

from pathlib import Path
from typing import Any

from aot.artifact.guard import Guard
from aot.cache_store.digest import Digest
from aot.cache_store.layer import pack
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import FileEntry, Layer, Manifest
from aot.cache_store.store import Ref, Store
from aot.cache_store.transfer import pull
from aot.cache_store.trust import Admitted, Policy


def guard_of(root: Path) -> Guard:
    """The guard of a store of one's own."""
    return Guard(Policy.read(root), root)


def admitted(store: LocalStore, digest: Digest) -> Admitted:
    return guard_of(store.root).admit(store, digest)


CREATED = "2026-01-02T03:04:05Z"


def packed(folder: Path, files: dict[str, bytes], *, kind: str = "graph") -> tuple[Layer, list[FileEntry], Path]:
    """Files packed into one layer; returns it, its entries and the blob's path."""
    root = folder / f"{kind}-files"
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    blob = folder / f"{kind}.layer"
    with blob.open("wb") as target:
        layer, entries = pack(kind, kind=kind, root=root, paths=files, target=target)
    return layer, entries, blob


def small(folder: Path, *, text: str = "hello", created: str = CREATED, key: str = "x") -> tuple[Ref, Manifest, dict[Digest, Path]]:
    """An artifact of two files in one layer."""
    layer, entries, blob = packed(folder, {"a/b.bin": text.encode(), "c.txt": b"\0" * 50})
    manifest = Manifest(name="small", key={"part": key}, created=created, producer={}, layers=(layer,), files=tuple(entries))
    return Ref.of(manifest), manifest, {layer.digest: blob}


def bring(manifest: Manifest, source: Store, local: LocalStore, **options: Any) -> Digest:
    """Pull an artifact without asking whose it is."""
    raw = manifest.encode()
    digest = Digest.of(raw)
    pull(Admitted(digest, manifest, by="the test"), raw, source.envelope(digest), source=source, local=local, **options)
    return digest
