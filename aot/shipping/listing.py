"""Listing: the artifacts of a store, as rows that can be picked by what a user types."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aot.cache_store.digest import Digest
from aot.cache_store.errors import Missing
from aot.cache_store.manifest import Manifest
from aot.cache_store.store import Entry, Ref, Store, read_listed
from aot.request.mode import Mode


@dataclass(frozen=True, slots=True)
class Row:
    """One artifact of a store."""

    entry: Entry

    @property
    def ref(self) -> Ref:
        return self.entry.ref

    @property
    def digest(self) -> Digest:
        return self.entry.digest

    def part(self, name: str) -> str:
        """A part of its key, `-` where it has no such part."""
        return self.entry.key.get(name, "-")

    @property
    def mode(self) -> str:
        return Mode.parse(self.part("mode")).title

    @property
    def target(self) -> str:
        return f"{self.part('target.device')} {self.part('target.sku')} torch {self.part('target.torch')}"

    @property
    def shapes(self) -> str:
        return f"dynamic, checked at {self.part('shapes')}" if self.part("dynamic") == "true" else self.part("shapes")

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.ref.name,
            "key": str(self.ref.key),
            "digest": str(self.digest),
            "created": self.entry.created,
            "size": self.entry.size,
            "parts": self.entry.key,
            "producer": dict(self.entry.producer),
            "measured": dict(self.entry.measured),
            "certificate": dict(self.entry.certificate),
        }


def described(row: Row, manifest: Manifest) -> dict[str, Any]:
    """A row as JSON, with the layers that only its manifest tells of."""
    layers = [{**asdict(layer), "digest": str(layer.digest)} for layer in manifest.layers]
    return {**row.to_json(), "layers": layers}


def listing(store: Store) -> list[Row]:
    """Newest first. Raises Corrupt or Missing for an artifact that cannot be read: a listing that hides one would lie."""
    entries = list(store.entries())
    for entry in entries:
        if not entry.key:
            read_listed(store, entry)
    return sorted(map(Row, entries), key=lambda row: row.entry.created, reverse=True)


def pick(rows: list[Row], text: str) -> list[Row]:
    """The rows that `text` names: by recipe, by `recipe@key`, or by the beginning of a key or digest. Raises Missing."""
    name, _, key = text.partition("@")
    key = key.removeprefix("sha256:")
    found = [row for row in rows if row.ref.name == name and row.ref.key.hex.startswith(key)]
    prefix = text.removeprefix("sha256:")
    if not found and len(prefix) >= 4:
        found = [row for row in rows if prefix in (row.ref.key.hex[: len(prefix)], row.digest.hex[: len(prefix)])]
    if not found:
        names = ", ".join(sorted({row.ref.name for row in rows})) or "none"
        raise Missing(f"no artifact {text!r} in this store; it holds: {names}.", remedy="`aot ls` lists them, `aot build` makes one.")
    return found
