"""Index: what a local store's manifests say, in one file, so that a listing does not open ten thousand.

It is a hint that can be thrown away: refs and manifests are what counts. A directory of refs is read again when its time of
change moved, or was so recent when it was read that it may have moved unseen. The file is text under a checksum: a turned bit
would otherwise hide an artifact as if it were not there.
"""

import heapq
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from zlib import crc32

from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError, Corrupt, Malformed
from aot.cache_store.manifest import Manifest
from aot.cache_store.plain import read_plain
from aot.cache_store.store import Entry, Ref
from aot.cache_store.written import write_hint

_FILE = "index"
_SETTLED = 2_000_000_000  # ns; file systems stamp times in steps of up to a clock tick, some of 2 s
_VERSION = "aot-index 1"
_NOTHING = "0" * 64  # the digest in a row whose ref holds none


@dataclass(slots=True)
class _Content:
    """Of the file. Keys have most of their parts in common: each is kept once, and a row has the numbers of its key's parts.

    A row is text: name, key, stamp of the ref's file, digest, created, size, and the numbers with a blank around each.
    """

    directories: dict[str, int] = field(default_factory=dict)  # when each last changed, in ns
    parts: dict[tuple[str, str], int] = field(default_factory=dict)
    rows: dict[tuple[str, str], str] = field(default_factory=dict)  # by name and key

    @classmethod
    def read(cls, path: Path) -> Self:
        """Empty where there is nothing that can be read."""
        with suppress(OSError, ValueError, Corrupt):
            title, _, body = read_plain(path).partition(b"\n")
            if title == _title(body):
                head, *lines = body.decode().split("\n")
                told = json.loads(head)
                parts = {(name, value): number for number, (name, value) in enumerate(told["parts"])}
                rows = {(name, key): line for line in lines for name, key in [line.split("\t", 2)[:2]]}
                return cls(told["directories"], parts, rows)
        return cls()

    def write(self, path: Path) -> None:
        head = json.dumps({"directories": self.directories, "parts": list(self.parts)})
        body = "\n".join([head, *self.rows.values()]).encode()
        with suppress(CodedError, OSError):  # on a disk that cannot be written the next listing reads what it needs again
            write_hint(path, _title(body) + b"\n" + body)

    def number(self, part: tuple[str, str]) -> int:
        return self.parts.setdefault(part, len(self.parts))


def _title(body: bytes) -> bytes:
    return f"{_VERSION} {crc32(body):08x}".encode()


class Index:
    """Of the tree `v1` of a store; `read` gives a manifest, verified."""

    def __init__(self, tree: Path, read: Callable[[Digest], Manifest]) -> None:
        self._tree, self._read = tree, read

    def entries(self, about: Collection[str], within: Mapping[str, str], newest: int | None) -> Iterator[Entry]:
        """As `Store.entries`. One whose manifest cannot be read has an empty key."""
        content = self._refreshed()
        rows: Collection[str] = content.rows.values()
        if about or within:
            some = [f" {number} " for (_, value), number in content.parts.items() if value in about]
            every = [f" {number} " for part, number in content.parts.items() if part in within.items()]
            known = len(every) == len(within)
            rows = [
                row
                for row in rows
                if row.endswith("\t") or (known and all(each in row for each in every) and (not about or any(each in row for each in some)))
            ]
        if newest is not None:
            rows = heapq.nlargest(newest, rows, key=lambda row: row.split("\t")[4])
        parts = {str(number): part for part, number in content.parts.items()}
        for row in rows:
            name, key, _, hex, created, size, numbers = row.split("\t")
            digest, own = Digest(hex), dict(map(parts.__getitem__, numbers.split()))
            producer, measured, certificate = (_Told(self._read, digest, field) for field in _Told.FIELDS)
            yield Entry(Ref(name, Digest(key)), digest, created, int(size), own, producer, measured, certificate)

    def _refreshed(self) -> _Content:
        content = _Content.read(self._tree / _FILE)
        found = {entry.name: entry for entry in os.scandir(self._tree / "refs") if entry.is_dir(follow_symlinks=False)}
        stale = [name for name, entry in found.items() if content.directories.get(name) != entry.stat(follow_symlinks=False).st_mtime_ns]
        gone = set(content.directories) - set(found)
        if not stale and not gone:
            return content
        content.directories = {name: changed for name, changed in content.directories.items() if name not in gone}
        content.rows = {(name, key): row for (name, key), row in content.rows.items() if name not in gone}
        for name in stale:
            self._scan(content, name)
        content.write(self._tree / _FILE)
        return content

    def _scan(self, content: _Content, name: str) -> None:
        """Read one directory of refs anew: only files that changed are opened, with their manifests."""
        directory = self._tree / "refs" / name
        changed = directory.stat().st_mtime_ns
        known = {key for other, key in content.rows if other == name}
        for entry in os.scandir(directory):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                stamp = f"{status.st_mtime_ns}.{status.st_ino}"
                known.discard(entry.name)
                row = content.rows.get((name, entry.name), "")
                if not row.startswith(f"{name}\t{entry.name}\t{stamp}\t") or row.endswith("\t"):
                    self._put(content, Path(entry.path), stamp)
        for key in known:
            del content.rows[name, key]
        content.directories[name] = changed if time.time_ns() - changed > _SETTLED else -1

    def _put(self, content: _Content, path: Path, stamp: str) -> None:
        name, key = path.parent.name, path.name
        content.rows.pop((name, key), None)
        with suppress(Malformed, OSError):
            Ref(name, Digest(key))  # a stray file is not a ref
            hex, told = _NOTHING, "\t0\t"
            with suppress(CodedError):  # who wants it will ask for it, and be told what is wrong
                hex = Digest.parse(read_plain(path).decode(errors="replace").rstrip("\n")).hex
                manifest = self._read(Digest(hex))
                numbers = " ".join(str(content.number(part)) for part in manifest.key.items())
                told = f"{manifest.created}\t{manifest.size}\t {numbers} "
            content.rows[name, key] = f"{name}\t{key}\t{stamp}\t{hex}\t{told}"


class _Told(Mapping[str, Any]):
    """A field of a manifest, read when something of it is wanted: a listing of thousands wants nothing of it."""

    FIELDS = ("producer", "measured", "certificate")
    __slots__ = ("_digest", "_name", "_read")

    def __init__(self, read: Callable[[Digest], Manifest], digest: Digest, name: str) -> None:
        self._read, self._digest, self._name = read, digest, name

    def _field(self) -> Mapping[str, Any]:
        try:
            found: Mapping[str, Any] = getattr(self._read(self._digest), self._name)
        except CodedError:
            return {}
        return found

    def __getitem__(self, key: str) -> Any:
        return self._field()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._field())

    def __len__(self) -> int:
        return len(self._field())
