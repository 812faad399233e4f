"""HubStore: artifacts in a model repository of the Hugging Face Hub, each written in one commit."""

import io
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Busy, Corrupt, Denied, Malformed, Missing, StoreFull, Unreachable
from aot.cache_store.hub_errors import TIMEOUT, hub_errors
from aot.cache_store.hub_list import HubList, Written
from aot.cache_store.hub_reader import COMMIT, HubReader
from aot.cache_store.manifest import MAX_MANIFEST, Manifest
from aot.cache_store.parted import CATALOGUE, cut
from aot.cache_store.patience import ATTEMPTS, Deadline, pause
from aot.cache_store.progress import Told, silent
from aot.cache_store.signing import MAX_ENVELOPE, claimed, merge
from aot.cache_store.store import EVERYTHING, Entry, Ref, check_manifest, leading_to, missing_blob, missing_manifest

Card: TypeAlias = Callable[[Collection[Entry], int], str]  # README.md of the repository, from the newest it holds, and how many there are
Beside: TypeAlias = Callable[["HubStore"], Mapping[str, Path | bytes]]  # what a commit puts at the repository's root, which it may look at
_Operation: TypeAlias = CommitOperationAdd | CommitOperationDelete
_MAX_REF = 200  # bytes
_COMMIT_SECONDS = 600.0


class HubStore:
    """Fulfils PrunableStore. Reads one state of the repository, that of its first request; a write of its own makes it look anew."""

    def __init__(self, repo: str, revision: str | None = None, *, api: HfApi | None = None, card: Card | None = None) -> None:
        """`revision`: branch, tag or commit. `card` makes the repository's README.md at each write."""
        self.location = f"hf://{repo}"
        self._repo, self._revision, self.card = repo, revision or "main", card
        self.beside: Beside = lambda _: {}
        self.told: Told = silent
        self._api = api or HfApi()
        self._forget()

    def __str__(self) -> str:
        """With the commit that is being read, once something was."""
        return f"{self.location}@{self._reader.commit or self._revision}"

    def _forget(self) -> None:
        self._reader = HubReader(self._repo, self._revision, api=self._api, location=self.location)
        self._list = HubList(self._reader)

    def state(self) -> tuple[int, str] | None:
        """Fulfils Sequenced. A revision that is the very commit cannot be moved."""
        state = self._list.state()
        pinned = self._reader.commit is not None and self._revision == self._reader.commit
        return None if pinned or not state[0] else state

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        for entry in self._list.entries():
            yield entry.ref, entry.digest

    def names(self) -> set[str]:
        """Of all artifacts, without reading all of a long list."""
        return self._list.names()

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        yield from self._list.entries(name=within.get("recipe", ""), about=about)

    def resolve(self, ref: Ref) -> Digest | None:
        return self._list.resolve(ref)

    def manifest(self, digest: Digest) -> bytes:
        raw = self._reader.small(f"v1/manifests/{digest.hex}", limit=MAX_MANIFEST, sound=lambda raw: Digest.of(raw) == digest)
        if raw is None:
            raise missing_manifest(digest)
        return raw

    def envelope(self, digest: Digest) -> bytes | None:
        return self._reader.small(f"v1/signatures/{digest.hex}", limit=MAX_ENVELOPE)

    def origins(self, digest: Digest) -> frozenset[str]:
        return frozenset({self.location})

    def open_blob(self, digest: Digest) -> AbstractContextManager[BinaryIO]:
        return cast(AbstractContextManager[BinaryIO], self._reader.blob(f"v1/blobs/{digest.hex}"))

    def commit(self, ref: Ref, manifest: bytes, blobs: Mapping[Digest, Path], *, envelope: bytes | None = None) -> Digest:
        parsed, digest = Manifest.parse(manifest), Digest.of(manifest)
        for promised, path in blobs.items():
            with path.open("rb") as file:
                if Digest.of_stream(file) != promised:
                    raise Corrupt(f"{path} does not hash to {promised.short}.", culprit=str(promised))

        def change() -> list[_Operation]:
            wanted = {layer.digest for layer in parsed.layers}
            there = set(self.sizes([f"v1/blobs/{layer.hex}" for layer in wanted]))
            adding: dict[str, Path | bytes] = {f"v1/blobs/{layer.hex}": blobs[layer] for layer in wanted if layer in blobs}
            if absent := [layer for layer in wanted if f"v1/blobs/{layer.hex}" not in {*there, *adding}]:
                raise missing_blob(absent[0])
            adding = {path: source for path, source in adding.items() if path not in there}
            adding[f"v1/manifests/{digest.hex}"] = manifest
            if signed := merge(self.envelope(digest), envelope):
                adding[f"v1/signatures/{digest.hex}"] = signed
            adding[f"v1/refs/{ref.name}/{ref.key.hex}"] = f"{digest}\n".encode()
            adding |= self.beside(self)
            return [*self._add(adding), *self._listing(self._list.changed(entry=Entry.of(ref, digest, parsed, signers=claimed(signed))))]

        def done() -> bool:
            return self.resolve(ref) == digest and not self._unsigned(digest, envelope)

        self._write(change, f"Add {ref.name} {digest.short}", done=done)
        return digest

    def quarantine(self, culprit: str) -> None:
        _, _, hex = culprit.rpartition(":")

        def change() -> list[_Operation]:
            gone = set(leading_to(self, culprit))
            files = [f"v1/{kind}/{hex}" for kind in ("blobs", "manifests", "signatures")]
            found = sorted(self.sizes([*files, *(f"v1/refs/{ref.name}/{ref.key.hex}" for ref in gone)]))
            listed = self._listing(self._list.changed(without=gone)) if gone else []
            return [*(CommitOperationDelete(path) for path in found), *listed]

        self._write(change, f"Take {culprit} out of use")

    def remove(self, ref: Ref) -> None:
        def change() -> list[_Operation]:
            if self.resolve(ref) is None:
                return []
            return [CommitOperationDelete(f"v1/refs/{ref.name}/{ref.key.hex}"), *self._listing(self._list.changed(without={ref}))]

        self._write(change, f"Remove {ref.name} {ref.key.short}", done=lambda: self.resolve(ref) is None)

    def collect(self) -> int:
        freed = 0

        def change() -> list[_Operation]:
            nonlocal freed
            digests = {digest for _, digest in self.refs()}
            layers = {layer.digest.hex for digest in digests for layer in Manifest.parse(self.manifest(digest)).layers}
            manifests = {digest.hex for digest in digests}
            kept = {"blobs": layers, "manifests": manifests, "signatures": manifests}
            trees = [(keep, self._tree(f"v1/{kind}")) for kind, keep in kept.items()]
            sizes = {path: size for keep, tree in trees for path, size in tree.items() if Path(path).name not in keep}
            freed = sum(size for path, size in sizes.items() if not path.startswith("v1/signatures/"))
            return [CommitOperationDelete(path) for path in sorted(sizes)]

        self._write(change, "Remove what no artifact needs")
        return freed

    def _write(self, change: Callable[[], list[_Operation]], message: str, *, done: Callable[[], bool] = lambda: False) -> None:
        """One commit of what `change` makes of the newest state, on top of exactly that state; again when it has moved meanwhile.

        A commit whose answer was an error may have been made all the same: before the next attempt `done` is asked.
        """
        if COMMIT.fullmatch(self._revision):
            raise Malformed(f"{self}: a commit cannot be written to.", remedy="leave @revision out, or name a branch.")
        deadline = Deadline(_COMMIT_SECONDS, f"writing to {self.location}")
        for attempt in range(ATTEMPTS + 3):
            self._forget()
            try:
                self._reader.commit = self._head()
                if attempt and done():
                    return
                if operations := change():
                    self._commit(operations, message)
            except (Denied, StoreFull):
                raise
            except Unreachable as error:
                if attempt == ATTEMPTS + 2:
                    raise Busy(f"{error.message} Tried {attempt + 1} times; nothing of it is visible.", remedy=error.remedy) from error
                pause(attempt, deadline)
            else:
                break
        self._forget()

    def _commit(self, operations: list[_Operation], message: str) -> None:
        with hub_errors(self.location), ExitStack() as files:
            for operation in operations:  # an open file goes by LFS: in pieces, where Xet would take a gigabyte of memory
                if isinstance(operation, CommitOperationAdd) and isinstance(operation.path_or_fileobj, str):
                    operation.path_or_fileobj = files.enter_context(_Upload(operation.path_or_fileobj, self.told))
            self._api.create_commit(
                self._repo, operations, commit_message=message, revision=self._revision, parent_commit=self._reader.commit
            )

    def _head(self) -> str | None:
        """The branch's commit: what a change is made from and what it is put on must be the same."""
        with hub_errors(self.location):
            return self._api.repo_info(self._repo, revision=self._revision, timeout=TIMEOUT).sha

    def _unsigned(self, digest: Digest, envelope: bytes | None) -> bool:
        """Whether signatures of `envelope` are not there yet."""
        there = self.envelope(digest)
        return envelope is not None and merge(there, envelope) != there

    def _listing(self, written: Written) -> list[_Operation]:
        card = {"README.md": self.card(written.shown, written.count).encode()} if self.card else {}
        return self._add({**written.files, **card})

    def _add(self, files: Mapping[str, Path | bytes]) -> list[_Operation]:
        return [CommitOperationAdd(path, source) for path, source in sorted(files.items())]

    def read(self, path: str, *, limit: int) -> bytes | None:
        """Any file of the repository, or None. Raises Corrupt for one of more bytes than `limit`."""
        return self._reader.small(path, limit=limit)

    def files(self) -> dict[str, int]:
        """All of the repository with their sizes."""
        return self._tree(None)

    def read_long(self, path: str, *, limit: int) -> bytes | None:
        """As `read`, of a file that may be long: what was interrupted is gone on with."""
        if not (size := self.sizes([path]).get(path, 0)):
            return None
        if size > limit:
            raise Corrupt(f"{self.location}: {path} is longer than {limit} bytes.", culprit=path)
        with self._reader.blob(path) as blob:
            return blob.read()

    def sizes(self, paths: list[str]) -> dict[str, int]:
        """Of those files that are there."""
        with hub_errors(self.location):
            found = self._api.get_paths_info(self._repo, paths, revision=self._reader.commit or self._revision)
            return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}

    def _tree(self, folder: str | None) -> dict[str, int]:
        """The files below a folder with their sizes, or all; none if there is no such folder."""
        with suppress(Missing), hub_errors(self.location):
            found = self._api.list_repo_tree(self._repo, folder, recursive=True, revision=self._reader.commit or self._revision)
            return {entry.path: entry.size for entry in found if isinstance(entry, RepoFile)}
        return {}

    def list_anew(self) -> None:
        """Make the list of artifacts again from the refs that are there. Raises Denied, Busy, Unreachable."""

        def change() -> list[_Operation]:
            try:
                serial = self._list.serial
            except Corrupt:
                serial = int(time.time())  # above any number that was ever counted to
                if self.sizes([CATALOGUE]):
                    serial = cut(serial)
            written = self._list.anew(filter(None, map(self._entry, sorted(self._tree("v1/refs")))), serial + 1)
            gone = sorted(path for path in self._tree("v1/lists") if path not in written.files)
            return [*self._listing(written), *map(CommitOperationDelete, gone)]

        self._write(change, "List the artifacts anew")

    def _entry(self, path: str) -> Entry | None:
        """Of one ref's file; None where it leads to nothing that can be read."""
        name, key = path.split("/")[2:]
        with suppress(Malformed, Corrupt, Missing):
            digest = Digest.parse((self._reader.small(path, limit=_MAX_REF) or b"").decode(errors="replace").rstrip("\n"))
            return Entry.of(
                Ref(name, Digest(key)), digest, check_manifest(self.manifest(digest), digest), signers=claimed(self.envelope(digest))
            )
        return None

    def create(self, *, private: bool) -> None:
        """Make the repository; fine if it is there."""
        with hub_errors(self.location):
            self._api.create_repo(self._repo, private=private, exist_ok=True)


class _Upload(io.BufferedReader):
    """A file that tells how much of it is read."""

    def __init__(self, path: str, told: Told) -> None:
        super().__init__(io.FileIO(path))
        self._told = told

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._told(len(data))
        return data
