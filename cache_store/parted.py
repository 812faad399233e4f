"""Parted: a list of artifacts that is too long for one file, cut into parts by name.

The one file then has the newest alone, which is what a client that knows of no parts goes on with; a catalogue has the parts, by digest.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import zstandard

from aot.cache_store.canonical import decode, encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed
from aot.cache_store.fields import Fields
from aot.cache_store.layer import MAX_WINDOW
from aot.cache_store.listed import SCHEMA, Listed, as_json, entry_of
from aot.cache_store.manifest import check_name
from aot.cache_store.store import Entry

WHOLE = 1 << 20  # bytes: up to here a list is one file. Some 300 artifacts
PARTED = 1 << 40  # added once to the number of writes of a list that is cut: what says that there are parts, in words of any version
CATALOGUE = "v1/lists.json"
MAX_PART = 16 << 20  # bytes, compressed: 100,000 artifacts of one name take about 12
MAX_UNPACKED = 1 << 30  # bytes of all parts that one process reads
_OF_MODELS = "component/"  # the parts of a key that many artifacts of one model have in common
_SHOWN = 12  # hexadecimal digits by which a catalogue tells what a part is about


@dataclass(frozen=True, slots=True)
class Part:
    """A part's file, how many artifacts are in it, and beginnings of the digests of their components."""

    digest: Digest
    count: int
    about: frozenset[str]

    def has(self, values: Collection[str]) -> bool:
        """Whether it may have one of these digests of components in a key."""
        return not values or any(_shown(value) in self.about for value in values)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The parts by name, as of a number of writes."""

    serial: int
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts.values())

    def encode(self) -> bytes:
        parts = {name: {"digest": str(part.digest), "count": part.count, "about": sorted(part.about)} for name, part in self.parts.items()}
        return encode({"schema": SCHEMA, "serial": self.serial, "parts": parts})

    @classmethod
    def parse(cls, raw: bytes, *, where: str) -> Self:
        """Raises Corrupt: the store's own catalogue is damaged."""
        try:
            fields = Fields(decode(raw, what="catalogue"), "catalogue")
            if fields.take("schema", int) != SCHEMA:
                raise Malformed("its schema is unknown.")
            serial = fields.size("serial", 1 << 53)
            parts = {name: _part(name, value) for name, value in fields.take("parts", dict).items()}
            fields.finish()
        except Malformed as error:
            raise _damaged(where, "catalogue of lists", error) from error
        return cls(serial, parts)


def _part(name: str, value: Any) -> Part:
    check_name(name)  # it becomes a path
    fields = Fields(value, "part")
    part = Part(Digest.parse(fields.take("digest", str)), fields.size("count", 1 << 32), frozenset(fields.words("about")))
    fields.finish()
    return part


def is_cut(serial: int) -> bool:
    """Whether a list of that number of writes has parts, and the one file the newest alone."""
    return serial >= PARTED


def cut(serial: int) -> int:
    """The number for a list that has parts from now on: it never has none again, for a number must not become less."""
    return serial if is_cut(serial) else serial + PARTED


def fits(raw: bytes) -> bool:
    """Whether a list may be in one file."""
    return len(raw) <= WHOLE


def path_of(name: str) -> str:
    """Of the file of a part."""
    return f"v1/lists/{name}"


def pack(entries: Iterable[Entry]) -> tuple[Part, bytes]:
    """A part of these entries, and its file."""
    found = sorted(entries, key=lambda entry: entry.ref)
    raw = zstandard.ZstdCompressor(level=9).compress(encode([as_json(entry) for entry in found]))
    about = frozenset(
        shown for entry in found for name, value in entry.key.items() if name.startswith(_OF_MODELS) and (shown := _shown(value))
    )
    return Part(Digest.of(raw), len(found), about), raw


def unpack(raw: bytes | None, part: Part, *, name: str, room: int, where: str) -> tuple[list[Entry], int]:
    """The entries of a part's file, and how many bytes they take unpacked. Raises Corrupt for another file than the catalogue says, or
    one that takes more than `room`."""
    try:
        if raw is None or Digest.of(raw) != part.digest:
            raise Malformed("it is not the one that its catalogue names")
        # the whole-buffer call ignores its size limit when the frame declares one, so only the stream is safe
        plain = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(raw).read(room + 1)
        if len(plain) > room:
            raise Malformed(f"its parts take more than {MAX_UNPACKED >> 20} MiB")
        found = list(map(entry_of, decode(plain, what="part")))
        if len(found) != part.count or any(entry.ref.name != name for entry in found):
            raise Malformed("it has other entries than its catalogue says")
    except (Malformed, zstandard.ZstdError, TypeError) as error:
        raise _damaged(where, "list of artifacts", error) from error
    return found, len(plain)


def newest(entries: Iterable[Entry], serial: int) -> Listed:
    """The list for the one file: as many of the newest as have room."""
    kept, room = [], WHOLE
    for entry in sorted(entries, key=lambda entry: entry.created, reverse=True):
        needed = len(encode(as_json(entry))) + 1
        if needed <= room:
            kept.append(entry)
            room -= needed
    return Listed(tuple(sorted(kept, key=lambda entry: entry.ref)), serial)


def over(entries: Iterable[Entry], newer: Iterable[Entry]) -> Iterator[Entry]:
    """The entries, with newer ones in the place of those of the same ref, and then those that are new."""
    fresh = {entry.ref: entry for entry in newer}
    for entry in entries:
        yield fresh.pop(entry.ref, entry)
    yield from fresh.values()


def _shown(value: str) -> str:
    """What a catalogue has of a value of a key: the beginning of a digest, nothing of other words."""
    return value.removeprefix("sha256:")[:_SHOWN] if value.startswith("sha256:") else ""


def _damaged(where: str, what: str, error: Exception) -> Corrupt:
    return Corrupt(f"{where}: its {what} cannot be read: {error}", remedy=f"its owner runs `aot fsck {where} --repair`.")
