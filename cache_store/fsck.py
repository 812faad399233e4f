"""Fsck: read a whole store, and tell what is not as promised."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Missing
from aot.cache_store.layer import materialise, verify
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.store import Ref, Store, check_manifest, read_listed
from aot.cache_store.transfer import pull
from aot.cache_store.trust import Admitted


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, with what, and which artifacts it spoils: ref, digest and where that was pulled from."""

    culprit: str
    what: str
    pulled: tuple[tuple[Ref, Digest, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.culprit}: {self.what}"


def examine(store: Store) -> Iterator[Finding]:
    """Every ref, manifest, layer and file of the store, read to its last byte. Raises Unreachable, Denied."""
    for entry in list(store.entries()):
        ref, digest = entry.ref, entry.digest
        try:
            manifest = read_listed(store, entry)
            if Ref.of(manifest) != ref:
                raise Corrupt(f"it leads to an artifact of {Ref.of(manifest)}.", culprit=str(ref))
            check_layers(store, manifest)
        except (Corrupt, Missing) as error:
            culprit = error.culprit if isinstance(error, Corrupt) and error.culprit else str(ref)
            origins = sorted(store.origins(digest) - {store.location})
            yield Finding(culprit, error.message, tuple((ref, digest, origin) for origin in origins[:1]))


def check_layers(store: Store, manifest: Manifest) -> int:
    """Hash every layer and every file in it; return the number of files. Raises Corrupt, Missing."""
    for layer in manifest.layers:
        with store.open_blob(layer.digest) as blob:
            verify(layer, blob)
            for entry in manifest.files_of(layer):  # one at a time: the disk need not hold them all
                directory = Path(tempfile.mkdtemp(prefix="aot-fsck-"))
                try:
                    materialise(layer, files=[entry], blob=blob, into=directory)
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
    return len(manifest.files)


def restore(local: LocalStore, digest: Digest, origin: Store) -> None:
    """Pull an artifact again from where it came from: the very same one. Its signatures are decided on when it is loaded."""
    raw = origin.manifest(digest)
    admitted = Admitted(digest, check_manifest(raw, digest), by="its digest, asked for by name")
    pull(admitted, raw, origin.envelope(digest), source=origin, local=local)
