"""Manifest: what an artifact promises. FORMAT.md is the specification; this is its reader and writer."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from aot.cache_store.canonical import decode, encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Malformed
from aot.cache_store.fields import Fields

SCHEMA = 1
MAX_MANIFEST = 8 << 20  # bytes
MAX_FILES = 50_000
MAX_FILE = 4 << 30  # bytes, one decompressed file
MAX_TOTAL = 16 << 30  # bytes, all decompressed files
MAX_RATIO = 200  # decompressed : compressed, per layer; a bomb needs more, a real cache stays under 40
RATIO_SLACK = 1 << 20  # bytes allowed on top, so that a small file of zeros is not taken for a bomb

_COMPONENT = re.compile(r"[A-Za-z0-9._+=@-]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_ID = re.compile(r"[a-z0-9-]{1,64}")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, slots=True)
class Layer:
    """One compressed blob. `size` in bytes and `digest` are of the compressed bytes."""

    id: str
    kind: str  # "graph" or "cache"
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a layer: a zstd frame of `length` bytes at `offset` that decompresses to `size` bytes hashing to `digest`."""

    path: str
    size: int
    digest: Digest
    layer: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """An artifact's promise. Its own digest is the artifact's digest."""

    name: str
    key: dict[str, str]  # named parts of what was asked
    created: str  # UTC, RFC 3339, whole seconds
    producer: dict[str, str]
    layers: tuple[Layer, ...]
    files: tuple[FileEntry, ...]
    measured: dict[str, Any] = field(default_factory=dict)  # what the build measured; informative
    certificate: dict[str, Any] = field(default_factory=dict)  # outputs compared with eager

    @property
    def size(self) -> int:
        """Compressed bytes of all layers."""
        return sum(layer.size for layer in self.layers)

    def layer(self, kind: str) -> Layer | None:
        """The layer of that kind, or None."""
        return next((layer for layer in self.layers if layer.kind == kind), None)

    def files_of(self, layer: Layer) -> list[FileEntry]:
        return [entry for entry in self.files if entry.layer == layer.id]

    def encode(self) -> bytes:
        """The canonical bytes; raises Malformed if this manifest would be refused by a reader."""
        document = {"schema": SCHEMA, **asdict(self)}
        for entry in [*document["layers"], *document["files"]]:
            entry["sha256"] = entry.pop("digest")["hex"]
        _check(self)
        return encode(document)

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Raises Malformed with the field that is wrong."""
        if len(raw) > MAX_MANIFEST:
            raise Malformed(f"manifest is {len(raw)} bytes; the limit is {MAX_MANIFEST}.")
        document = decode(raw, what="manifest")
        fields = Fields(document, "manifest")
        if fields.take("schema", int) != SCHEMA:
            raise Malformed(f"manifest schema {document['schema']!r} is unknown; this version reads {SCHEMA}.")
        manifest = cls(
            name=fields.take("name", str),
            key=fields.texts("key"),
            created=fields.take("created", str),
            producer=fields.texts("producer"),
            layers=tuple(_layer(item) for item in fields.take("layers", list)),
            files=tuple(_file(item) for item in fields.take("files", list)),
            measured=fields.take("measured", dict),
            certificate=fields.take("certificate", dict),
        )
        fields.finish()
        _check(manifest)
        return manifest


def _layer(item: Any) -> Layer:
    fields = Fields(item, "layer")
    layer = Layer(
        id=fields.take("id", str),
        kind=fields.take("kind", str),
        size=fields.size("size", MAX_TOTAL),
        digest=Digest(fields.take("sha256", str)),
    )
    fields.finish()
    return layer


def _file(item: Any) -> FileEntry:
    fields = Fields(item, "file")
    entry = FileEntry(
        path=fields.take("path", str),
        size=fields.size("size", MAX_FILE),
        digest=Digest(fields.take("sha256", str)),
        layer=fields.take("layer", str),
        offset=fields.size("offset", MAX_TOTAL),
        length=fields.size("length", MAX_TOTAL),
    )
    fields.finish()
    return entry


def check_path(path: str) -> None:
    """Raises Malformed unless `path` can be joined to a directory on any file system and stays inside it."""
    parts = path.split("/")
    if len(path) > 240 or not all(_COMPONENT.fullmatch(part) and part not in (".", "..") for part in parts):
        raise Malformed(f"file path {path!r} is not allowed (letters, digits and ._+=@- between slashes, at most 240 bytes).")


def check_name(name: str) -> None:
    """Raises Malformed unless `name` can be an artifact's name."""
    if not _NAME.fullmatch(name):
        raise Malformed(f"artifact name {name!r} is not allowed (lower-case letters, digits and ._-, at most 100).")


def _check(manifest: Manifest) -> None:
    check_name(manifest.name)
    if not _CREATED.fullmatch(manifest.created):
        raise Malformed(f"manifest field 'created' is {manifest.created!r}; expected YYYY-MM-DDTHH:MM:SSZ.")
    if len(manifest.files) > MAX_FILES or sum(entry.size for entry in manifest.files) > MAX_TOTAL:
        raise Malformed(f"manifest lists more than {MAX_FILES} files or {MAX_TOTAL} bytes.")
    ids = [layer.id for layer in manifest.layers]
    if len(set(ids)) != len(ids) or not all(_ID.fullmatch(id) for id in ids):
        raise Malformed("manifest layer ids are not unique words.")
    if unknown := {entry.layer for entry in manifest.files} - set(ids):
        raise Malformed(f"manifest has files in layers it does not list: {sorted(unknown)}.")
    for layer in manifest.layers:
        _check_layer(layer, manifest.files_of(layer))
    _check_tree([entry.path for entry in manifest.files])


def _check_layer(layer: Layer, files: list[FileEntry]) -> None:
    """Files lie end to end from 0 to the layer's size, in the order of their paths."""
    if [entry.path for entry in files] != sorted(entry.path for entry in files):
        raise Malformed(f"files of layer {layer.id!r} are not sorted by path.")
    end = 0
    for entry in files:
        if entry.offset != end:
            raise Malformed(f"file {entry.path!r} begins at {entry.offset}, not at {end} where the one before it ends.")
        end += entry.length
    if end != layer.size:
        raise Malformed(f"layer {layer.id!r} has {layer.size} bytes, its files cover {end}.")
    if sum(entry.size for entry in files) > MAX_RATIO * layer.size + RATIO_SLACK:
        raise Malformed(f"layer {layer.id!r} expands more than {MAX_RATIO}:1.")


def _check_tree(paths: list[str]) -> None:
    """No two paths are the same file, or a file and a directory, on a file system that ignores case."""
    folded = [path.casefold() for path in paths]
    if len(set(folded)) != len(folded):
        raise Malformed("two file paths differ only in case, or not at all.")
    directories = {"/".join(parts[:n]) for path in folded for parts in [path.split("/")] for n in range(1, len(parts))}
    if clash := directories & set(folded):
        raise Malformed(f"{sorted(clash)[0]!r} is both a file and a directory.")
    for path in paths:
        check_path(path)
