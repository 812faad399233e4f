"""Listed: the list of artifacts that a remote store keeps in one file, so that one request tells what there is."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Self

from aot.cache_store.canonical import decode, encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed
from aot.cache_store.fields import Fields
from aot.cache_store.store import Entry, Ref

SCHEMA = 1
MAX_LIST = 64 << 20  # bytes; 10,000 artifacts of two components take about 30


@dataclass(frozen=True, slots=True)
class Listed:
    """Entries, and the number of writes so far: a list with a smaller number than one seen before is an old one."""

    entries: tuple[Entry, ...] = ()
    serial: int = 0

    def with_entry(self, entry: Entry) -> Self:
        """The next list, with this entry in place of one of the same ref."""
        rest = [other for other in self.entries if other.ref != entry.ref]
        return type(self)(tuple(sorted([*rest, entry], key=lambda one: one.ref)), self.serial + 1)

    def without(self, refs: Collection[Ref]) -> Self:
        return type(self)(tuple(entry for entry in self.entries if entry.ref not in refs), self.serial + 1)

    def encode(self) -> bytes:
        return encode({"schema": SCHEMA, "serial": self.serial, "artifacts": [as_json(entry) for entry in self.entries]})

    @classmethod
    def readable(cls, raw: bytes) -> bool:
        try:
            cls.parse(raw, where="")
        except Corrupt:
            return False
        return True

    @classmethod
    def parse(cls, raw: bytes, *, where: str) -> Self:
        """Raises Corrupt: the store's own list is damaged."""
        try:
            fields = Fields(decode(raw, what="list of artifacts"), "list of artifacts")
            if (schema := fields.take("schema", int)) != SCHEMA:
                raise Malformed(f"its schema {schema} is unknown; this version reads {SCHEMA}.")
            serial = fields.size("serial", 1 << 53)
            entries = tuple(map(entry_of, fields.take("artifacts", list)))
            fields.finish()
        except Malformed as error:
            raise Corrupt(
                f"{where}: its list of artifacts cannot be read: {error.message}", remedy=f"its owner runs `aot fsck {where} --repair`."
            ) from error
        return cls(entries, serial)


def as_json(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "ref": str(entry.ref), "digest": str(entry.digest)}


def entry_of(value: Any) -> Entry:
    """The inverse. Raises Malformed."""
    fields = Fields(value, "entry")
    entry = Entry(
        ref=Ref.parse(fields.take("ref", str)),
        digest=Digest.parse(fields.take("digest", str)),
        created=fields.take("created", str),
        size=fields.size("size", 1 << 53),
        key=fields.texts("key"),
        producer=fields.texts("producer"),
        measured=fields.take("measured", dict),
        certificate=fields.take("certificate", dict),
        signers=fields.words("signers"),
    )
    fields.finish()
    return entry
