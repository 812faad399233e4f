"""FilesystemStore: artifacts in any place that fsspec opens: S3, Google Cloud Storage, a mounted share, memory."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.utils import infer_storage_options

from aot.cache_store.digest import CHUNK, Digest, chunks
from aot.cache_store.errors import CodedError, Corrupt, Denied, Malformed, Missing, Unreachable, full
from aot.cache_store.manifest import MAX_MANIFEST, Manifest
from aot.cache_store.progress import Told, silent
from aot.cache_store.signing import MAX_ENVELOPE, merge
from aot.cache_store.store import EVERYTHING, Entry, Ref, check_manifest, leading_to, missing_blob, missing_manifest, read_manifest

# where a file needs its folder to be made first; elsewhere that may make a bucket, which nobody asked for
_WITH_FOLDERS = {"file", "local", "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs"}
_MAX_REF = 200  # bytes
_WINDOW = 8 * CHUNK  # bytes read ahead: a blob is read from end to end


class FilesystemStore:
    """Fulfils PrunableStore. The layout is the local store's: `v1/blobs`, `v1/manifests`, `v1/signatures`, `v1/refs`."""

    def __init__(self, url: str) -> None:
        """Raises Malformed for a URL that no installed fsspec backend opens."""
        self.location = url.rstrip("/")
        self.told: Told = silent
        self._protocol = infer_storage_options(url)["protocol"]
        try:
            self._fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=self._protocol != "memory")
        except (ImportError, ValueError) as error:
            raise Malformed(f"store location {url!r}: {error}", remedy="pip install the fsspec backend of that scheme.") from error
        self._root = f"{path.rstrip('/')}/v1"

    def __str__(self) -> str:
        return self.location

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        with self._named():
            paths = sorted(self._fs.find(f"{self._root}/refs"))
            found = self._fs.cat(paths, on_error="omit") if paths else {}
        contents = found if isinstance(found, dict) else dict(zip(paths, [found], strict=True))
        for path, raw in contents.items():
            name, _, key = path.rpartition("/refs/")[2].partition("/")
            try:
                yield Ref(name, Digest(key)), _digest(raw)
            except Malformed:  # a stray file is not a ref
                continue

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        """All manifests are fetched, several at once where the backend can: there is no list that two writers could spoil."""
        refs = list(self.refs())
        paths = {self._path("manifests", digest): digest for _, digest in refs}
        with self._named():
            raw = self._fs.cat(list(paths), on_error="omit") if paths else {}
        found = raw if isinstance(raw, dict) else dict(zip(paths, [raw], strict=True))
        by_digest = {digest: found.get(self._fs._strip_protocol(path)) for path, digest in paths.items()}
        for ref, digest in refs:
            try:
                yield Entry.of(ref, digest, check_manifest(by_digest[digest] or b"", digest))
            except Corrupt:
                yield Entry(ref, digest, created="", size=0, key={})

    def resolve(self, ref: Ref) -> Digest | None:
        raw = self._read(self._ref(ref), _MAX_REF)
        if raw is None:
            return None
        try:
            return _digest(raw)
        except Malformed as error:
            raise Corrupt(f"ref {ref.name}@{ref.key.short} does not hold a digest.", culprit=str(ref)) from error

    def manifest(self, digest: Digest) -> bytes:
        raw = self._read(self._path("manifests", digest), MAX_MANIFEST + 1)
        if raw is None:
            raise missing_manifest(digest)
        return raw

    def envelope(self, digest: Digest) -> bytes | None:
        return self._read(self._path("signatures", digest), MAX_ENVELOPE + 1)

    def origins(self, digest: Digest) -> frozenset[str]:
        return frozenset({self.location})

    @contextmanager
    def open_blob(self, digest: Digest) -> Iterator[BinaryIO]:
        with self._named():
            try:
                file = self._fs.open(self._path("blobs", digest), "rb", block_size=_WINDOW, cache_type="readahead")
            except FileNotFoundError:
                raise missing_blob(digest) from None
            with file:
                yield cast(BinaryIO, file)

    def commit(self, ref: Ref, manifest: bytes, blobs: Mapping[Digest, Path], *, envelope: bytes | None = None) -> Digest:
        digest, layers = Digest.of(manifest), Manifest.parse(manifest).layers
        for layer in layers:
            self._put_blob(layer.digest, blobs.get(layer.digest))
        self._put(self._path("manifests", digest), manifest)
        if signed := merge(self.envelope(digest), envelope):
            self._put(self._path("signatures", digest), signed)
        self._put(self._ref(ref), f"{digest}\n".encode())
        return digest

    def quarantine(self, culprit: str) -> None:
        for ref in list(leading_to(self, culprit)):
            self.remove(ref)
        _, _, hex = culprit.rpartition(":")
        for kind in ("blobs", "manifests", "signatures"):
            self._delete(f"{self._root}/{kind}/{hex}")

    def remove(self, ref: Ref) -> None:
        self._delete(self._ref(ref))

    def collect(self) -> int:
        """Not beside a commit: the backends have nothing that would keep the two apart."""
        manifests = {digest for _, digest in self.refs()}
        layers = {layer.digest.hex for digest in manifests for layer in read_manifest(self, digest).layers}
        named = {digest.hex for digest in manifests}
        freed = 0
        for kind, kept in (("blobs", layers), ("manifests", named), ("signatures", named)):
            for path, size in self._sizes(kind).items():
                if path.rpartition("/")[2] not in kept:
                    self._delete(path)
                    freed += 0 if kind == "signatures" else size
        return freed

    def _sizes(self, kind: str) -> dict[str, int]:
        with self._named():
            found: dict[str, dict[str, Any]] = self._fs.find(f"{self._root}/{kind}", detail=True)
            return {path: int(info["size"]) for path, info in found.items()}

    def _path(self, kind: str, digest: Digest) -> str:
        return f"{self._root}/{kind}/{digest.hex}"

    def _ref(self, ref: Ref) -> str:
        return f"{self._root}/refs/{ref.name}/{ref.key.hex}"

    def _read(self, path: str, limit: int) -> bytes | None:
        with self._named():
            try:
                with self._fs.open(path, "rb") as file:
                    return cast(bytes, file.read(limit))
            except FileNotFoundError:
                return None

    def _put_blob(self, digest: Digest, source: Path | None) -> None:
        path = self._path("blobs", digest)
        with self._named():
            if self._fs.exists(path):
                return
        if source is None:
            raise missing_blob(digest)
        with source.open("rb") as file:
            if Digest.of_stream(file) != digest:
                raise Corrupt(f"{source} does not hash to {digest.short}.", culprit=str(digest))
            file.seek(0)
            self._put(path, file)

    def _put(self, path: str, content: bytes | BinaryIO) -> None:
        """Whole or not at all: the backend's own way of making a file visible only when it is complete."""
        with self._named():
            if self._protocol in _WITH_FOLDERS:
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            file = self._fs.open(path, "wb", autocommit=False)
            try:
                for chunk in [content] if isinstance(content, bytes) else chunks(content):
                    file.write(chunk)
                    self.told(len(chunk))
                file.close()
                file.commit()
            except BaseException:
                file.discard()
                raise
            self._fs.invalidate_cache()

    def _delete(self, path: str) -> None:
        with self._named():
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                return
            self._fs.invalidate_cache()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except CodedError:
            raise
        except PermissionError as error:
            raise Denied(f"{self.location}: {error or 'not allowed'}", remedy="give the backend credentials that may use it.") from error
        except FileNotFoundError as error:
            raise Missing(f"{self.location}: no such bucket or folder: {error}", remedy="make it, or name another.") from error
        except OSError as error:
            raise full(error, self.location) or Unreachable(f"{self.location}: {error}", remedy="see whether it can be reached.") from error
        except Exception as error:  # each backend raises its client library's own types, which share no base
            raise Unreachable(f"{self.location}: {type(error).__name__}: {error}", remedy="see whether it can be reached.") from error


def _digest(raw: bytes) -> Digest:
    return Digest.parse(raw.decode(errors="replace").rstrip("\n"))
