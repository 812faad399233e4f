"""Packages: a repository or folder of AOTInductor packages that others made, as a store: each set of them is an artifact.

ZeroGPU Spaces load such: `{BlockClass}[.VARIANT]/package.pt2` for every block of a class, `package/root/package.pt2` for a module. They
are signed by nobody, so that none is loaded unless it was pinned. The artifact is a function of their bytes and of where they lie: it has
the same digest whoever looks, at whatever commit.
"""

from __future__ import annotations

import io
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

from aot.artifact.kinds import MAX_PACKAGE, PACKAGE, PACKAGES
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Malformed, Missing, named
from aot.cache_store.history import Sequenced
from aot.cache_store.layer import pack_stored
from aot.cache_store.manifest import FileEntry, Layer, Manifest
from aot.cache_store.store import EVERYTHING, Entry, Ref, Store, missing_blob, missing_manifest, names_in
from aot.machine.fit import OR, PACKAGED

if TYPE_CHECKING:
    from aot.artifact.packaged import Packaged

log = logging.getLogger("aot")

ROOT, SUBMODULES = "package/root", "package/submodules"
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"
_MAX_PACKAGES = 64  # of one repository
_NAME_LENGTH = 100


@runtime_checkable
class Root(Protocol):
    """Files by their paths, at one commit."""

    location: str

    def files(self) -> dict[str, int]: ...

    def read_long(self, path: str, *, limit: int) -> bytes | None: ...


class Folder:
    """Fulfils Root: a folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path, self.location = path, path.absolute().as_uri()

    def files(self) -> dict[str, int]:
        with named(self._path):
            found = [path for path in self._path.rglob(PACKAGE) if path.is_file()]
            return {path.relative_to(self._path).as_posix(): path.stat().st_size for path in found}

    def read_long(self, path: str, *, limit: int) -> bytes | None:
        with named(self._path), (self._path / path).open("rb") as file:
            found = file.read(limit + 1)
        if len(found) > limit:
            raise Malformed(f"{self._path / path} is longer than {limit} bytes.")
        return found


@dataclass(frozen=True, slots=True)
class _Set:
    """The packages of one variant, packed."""

    manifest: Manifest
    layer: bytes
    raw: bytes = field(repr=False)

    @property
    def ref(self) -> Ref:
        return Ref.of(self.manifest)


class PackagesStore:
    """Fulfils Store, and Sequenced where `listed` does: what that lists; and where it lists nothing, the packages that lie in `root`.

    Nothing is asked of either before it is needed. Packages are read in full to be listed; those of published models are of a megabyte.
    """

    def __init__(self, root: Root, listed: Store | None = None) -> None:
        self._root, self._listed = root, listed
        self.location = root.location

    def __str__(self) -> str:
        return str(self._listed) if self._listed else self.location

    @cached_property
    def _sets(self) -> dict[Digest, _Set]:
        """By the digest of their artifact. Empty where the store has a list of its own. A variant that cannot be read is left out, and said
        so; raises Malformed where none can be."""
        if self._listed and names_in(self._listed):
            return {}
        found: dict[str, dict[str, str]] = defaultdict(dict)
        paths = [path for path in sorted(self._root.files()) if PurePosixPath(path).name == PACKAGE]
        if len(paths) > _MAX_PACKAGES:
            raise Malformed(f"{self.location} has {len(paths)} packages; up to {_MAX_PACKAGES} are read.")
        for path in paths:
            variant, place = _placed(path)
            found[variant][place] = path
        sets, refused = list[_Set](), list[Malformed]()
        for variant, places in found.items():
            try:
                sets.append(self._read(variant, places))
            except Malformed as error:
                refused.append(error)
        if refused and not sets:
            raise refused[0]
        for one in refused:
            log.warning("%s", one)
        return {Digest.of(one.raw): one for one in sets}

    def _read(self, variant: str, places: Mapping[str, str]) -> _Set:
        from aot.artifact.packaged import Packaged  # imports torch, which listing our own artifacts does without

        raw, read = dict[str, bytes](), dict[str, Packaged]()
        for place, path in places.items():
            data = self._root.read_long(path, limit=MAX_PACKAGE)
            if data is None:
                raise Missing(f"{self.location} has no {path}.", remedy="try again: it was there a moment ago.")
            try:
                read[place] = Packaged.read(data)
            except Malformed as error:
                raise Malformed(f"{self.location}: {path}: {error.message}", remedy="ask its author; nothing of it was loaded.") from error
            raw[f"{place}/{PACKAGE}"] = data
        blob = io.BytesIO()
        layer, files = pack_stored(PACKAGES, kind=PACKAGES, files=raw, target=blob)
        manifest = _manifest(_name(self.location), variant, read, layer, files)
        return _Set(manifest, blob.getvalue(), manifest.encode())

    def state(self) -> tuple[int, str] | None:
        return self._listed.state() if isinstance(self._listed, Sequenced) else None

    def refs(self) -> Iterator[tuple[Ref, Digest]]:
        if self._listed:
            yield from self._listed.refs()
        for digest, one in self._sets.items():
            yield one.ref, digest

    def names(self) -> set[str]:
        return {*(names_in(self._listed) if self._listed else ()), *(one.ref.name for one in self._sets.values())}

    def entries(self, *, about: Collection[str] = (), within: Mapping[str, str] = EVERYTHING, newest: int | None = None) -> Iterator[Entry]:
        if self._listed:
            yield from self._listed.entries(about=about, within=within, newest=newest)
        for digest, one in self._sets.items():
            yield Entry.of(one.ref, digest, one.manifest)

    def resolve(self, ref: Ref) -> Digest | None:
        found = self._listed.resolve(ref) if self._listed else None
        return found or next((digest for digest, one in self._sets.items() if one.ref == ref), None)

    def manifest(self, digest: Digest) -> bytes:
        if one := self._sets.get(digest):
            return one.raw
        if self._listed is None:
            raise missing_manifest(digest)
        return self._listed.manifest(digest)

    def envelope(self, digest: Digest) -> bytes | None:
        return self._listed.envelope(digest) if self._listed and digest not in self._sets else None

    def origins(self, digest: Digest) -> frozenset[str]:  # noqa: ARG002
        return frozenset({self.location})

    @contextmanager
    def open_blob(self, digest: Digest) -> Iterator[BinaryIO]:
        if found := next((one.layer for one in self._sets.values() if one.manifest.layers[0].digest == digest), None):
            yield io.BytesIO(found)
        elif self._listed is None:
            raise missing_blob(digest)
        else:
            with self._listed.open_blob(digest) as blob:
                yield blob


def with_packages(store: Store) -> Store:
    """The store, and where it is a repository or folder without a list of ours, the packages that lie there."""
    scheme, _, path = store.location.partition("://")
    if isinstance(store, Root):
        return PackagesStore(store, store)
    return PackagesStore(Folder(Path(path)), store) if scheme == "file" else store


def _placed(path: str) -> tuple[str, str]:
    """The variant that a package is of, and its place among those: folders around it are part of the variant's name."""
    folder = PurePosixPath(path).parent
    if not folder.name:
        return "", ROOT
    for known in (ROOT, SUBMODULES):
        before, found, after = f"/{folder}/".partition(f"/{known}/")
        if found:
            return before.strip("/"), f"{known}/{after.strip('/')}".rstrip("/")
    name, _, variant = folder.name.partition(".")
    around = "" if str(folder.parent) == "." else str(folder.parent)
    return "/".join(filter(None, (around, variant))), name or folder.name


def _name(location: str) -> str:
    """What artifacts of that location are called."""
    last = [part for part in location.rsplit("://", maxsplit=1)[-1].lower().split("/") if part][-2:]
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in ".".join(last))
    return kept.lstrip("._-")[:_NAME_LENGTH] or PACKAGED


def _manifest(name: str, variant: str, read: Mapping[str, Packaged], layer: Layer, files: list[FileEntry]) -> Manifest:
    """Raises Malformed for packages that are not for one machine."""
    shared = {(one.device, one.machine) for one in read.values()}
    versions = set.intersection(*({*one.torch.split(OR)} for one in read.values()))
    if len(shared) != 1 or not versions:
        raise Malformed(f"the packages of {name} {variant} are for several machines, or of several versions of torch.")
    ((device, machine),) = shared
    isa = sorted({word.lower() for one in read.values() for word in one.isa})
    kernels = [{*one.architectures} for one in read.values() if one.architectures]
    architectures = " ".join(sorted(set.intersection(*kernels))) if kernels else ""
    key = {
        "recipe": name,
        "variant": variant or "published",
        "layout": PACKAGED,
        "packages": " ".join(sorted(read)),
        "mode": "default",
        "shapes": "; ".join(f"{place}: {' '.join(map(str, one.inputs))}" for place, one in sorted(read.items())),
        "target.device": device,
        "target.sku": "+".join(isa) if device == "cpu" else architectures,
        "target.torch": OR.join(sorted(versions)),
        "target.system": f"linux-{machine}",
        **({"target.arch": architectures} if device != "cpu" else {}),
    }
    return Manifest(name, key, _UNKNOWN_TIME, {}, (layer,), tuple(files))
