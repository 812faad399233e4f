"""CachedStore: a remote store read through into the local one. What was once pulled is served without the remote."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Missing, RolledBack, Unreachable
from aot.cache_store.history import check_history
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.patience import HAVE_SECONDS, in_time
from aot.cache_store.progress import Told, silent
from aot.cache_store.store import EVERYTHING, Entry, Ref, Store, check_manifest, missing_blob
from aot.cache_store.transfer import pull
from aot.cache_store.trust import Admitted

log = logging.getLogger("aot")


class CachedStore:
    """Fulfils MendableStore: what proves wrong here is quarantined here, and fetched again."""

    def __init__(self, remote: Store, local: LocalStore, *, told: Told = silent) -> None:
        self.remote, self.local = remote, local
        self.location = remote.location
        self._told = told
        self._away = False  # the remote did not answer, and there was something here to go on with
        self._seen: dict[Digest, tuple[Manifest, bytes]] = {}  # of the manifests read so far, which layers belong to which

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        for entry in self.entries():
            yield entry.ref, entry.digest

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        """The remote's; those pulled from it before, if it cannot be reached or was rolled back. Raises that if there are none.

        Where there are some, it is not waited for long.
        """

        def asked() -> list[Entry]:
            return list(self.remote.entries(about=about, within=within, newest=newest))

        pulled = [entry for entry in self.local.entries(about=about, within=within, newest=newest) if self._is_from_there(entry)]
        if self._away:
            return iter(pulled)
        try:
            found = in_time(asked, seconds=HAVE_SECONDS, what=f"an answer of {self.location}") if pulled else asked()
            check_history(self.remote, self.local)
        except (Unreachable, RolledBack) as error:
            if not pulled:
                raise
            log.warning("%s Going on with what was pulled from %s before.", error, self.location)
            self._away, found = True, pulled
        return iter(found)

    def _is_from_there(self, entry: Entry) -> bool:
        try:
            return self.location in self.local.origins(entry.digest)
        except Corrupt:
            return False

    def resolve(self, ref: Ref) -> Digest | None:
        return next((digest for found, digest in self.refs() if found == ref), None)

    def manifest(self, digest: Digest) -> bytes:
        """Verified against its digest: what a remote sends under a digest is that or nothing."""
        try:
            raw = self.local.manifest(digest)
        except Missing:
            raw = self.remote.manifest(digest)
        self._seen[digest] = check_manifest(raw, digest), raw
        return raw

    def envelope(self, digest: Digest) -> bytes | None:
        return self.local.envelope(digest) or (None if self._away else self.remote.envelope(digest))

    def origins(self, digest: Digest) -> frozenset[str]:  # whatever else it came from, it is asked for from there
        return frozenset({self.location})

    def open_blob(self, digest: Digest) -> AbstractContextManager[BinaryIO]:
        """Pulls the whole artifact that the blob belongs to, if it is not here."""
        if self.local.blob_path(digest) is None:
            layers = {layer.digest: owner for owner, (manifest, _) in self._seen.items() for layer in manifest.layers}
            if digest not in layers:
                raise missing_blob(digest)
            self.bring(layers[digest])
        return self.local.open_blob(digest)

    def bring(self, digest: Digest) -> None:
        """Pull the artifact of that manifest, read before, into the local store; what is there already is not sent for."""
        manifest, raw = self._seen[digest]
        if self.local.resolve(Ref.of(manifest)) == digest and all(self.local.blob_path(layer.digest) for layer in manifest.layers):
            return
        pull(Admitted(digest, manifest, by="its reader"), raw, self.envelope(digest), source=self.remote, local=self.local, told=self._told)

    def quarantine(self, culprit: str) -> None:
        self.local.quarantine(culprit)
