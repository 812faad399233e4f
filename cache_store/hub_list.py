"""HubList: what a repository's list of artifacts says at one commit, in one file or in parts, and the files of the next one."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from aot.cache_store.digest import Digest
from aot.cache_store.hub_reader import HubReader
from aot.cache_store.listed import MAX_LIST, Listed
from aot.cache_store.parted import CATALOGUE, MAX_PART, MAX_UNPACKED, Catalogue, cut, fits, is_cut, newest, over, pack, path_of, unpack
from aot.cache_store.store import Entry, Ref

LIST = "v1/index.json"


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a list; what a card is made from, and how many artifacts there are in all."""

    files: Mapping[str, bytes]
    shown: tuple[Entry, ...]
    count: int


class HubList:
    """Read once, by `reader`, as far as is asked for: a repository of a hundred models is asked for one."""

    def __init__(self, reader: HubReader) -> None:
        self._reader, self._where = reader, reader.location
        self._listed: Listed | None = None
        self._catalogue: Catalogue | None = None
        self._parts: dict[str, list[Entry]] = {}
        self._room = MAX_UNPACKED

    def _one_file(self) -> Listed:
        if self._listed is None:
            raw = self._reader.small(LIST, limit=MAX_LIST, sound=Listed.readable)
            self._listed = Listed.parse(raw, where=self._where) if raw is not None else Listed()
        return self._listed

    def _list(self) -> tuple[Listed, Catalogue | None]:
        listed = self._one_file()
        if is_cut(listed.serial) and self._catalogue is None:
            self._catalogue = Catalogue.parse(self._reader.small(CATALOGUE, limit=MAX_LIST) or b"", where=self._where)
        return listed, self._catalogue

    @property
    def serial(self) -> int:
        """How often it was written; asks for no part."""
        return self._one_file().serial

    def state(self) -> tuple[int, str]:
        """The number of its last write, and what identifies it."""
        listed, catalogue = self._list()
        raw = listed.encode() + (catalogue.encode() if catalogue else b"")
        return listed.serial, str(Digest.of(raw))

    def names(self) -> set[str]:
        listed, catalogue = self._list()
        return {entry.ref.name for entry in listed.entries} | (set(catalogue.parts) if catalogue else set())

    def entries(self, *, name: str = "", about: Collection[str] = ()) -> Iterator[Entry]:
        """All, but for parts of other names, or without any of the values `about`."""
        listed, catalogue = self._list()
        if catalogue is None:
            yield from listed.entries
            return
        wanted = [one for one, part in catalogue.parts.items() if name in ("", one) and part.has(about)]
        known = (entry for one in wanted for entry in self._part(one, catalogue))
        yield from over(known, _newer(listed, catalogue))

    def resolve(self, ref: Ref) -> Digest | None:
        return next((entry.digest for entry in self.entries(name=ref.name) if entry.ref == ref), None)

    def _part(self, name: str, catalogue: Catalogue) -> list[Entry]:
        if name not in catalogue.parts:
            return []
        if name not in self._parts:
            raw = self._reader.small(path_of(name), limit=MAX_PART)
            where = f"{self._where}: {name}"
            self._parts[name], taken = unpack(raw, catalogue.parts[name], name=name, room=self._room, where=where)
            self._room -= taken
        return self._parts[name]

    def changed(self, *, entry: Entry | None = None, without: Collection[Ref] = ()) -> Written:
        """The next list: with an entry in the place of one of its ref, and without some."""
        listed, catalogue = self._list()
        added = [entry] if entry else []
        if catalogue is None:
            kept = [one for one in over(listed.entries, added) if one.ref not in without]
            return self.anew(kept, listed.serial + 1)
        newer = [*_newer(listed, catalogue), *added]  # some were written by who knows of no parts
        touched = {one.ref.name for one in newer} | {ref.name for ref in without}
        files, parts = dict[str, bytes](), dict(catalogue.parts)
        for name in sorted(touched):
            mine = (one for one in newer if one.ref.name == name)
            found = [one for one in over(self._part(name, catalogue), mine) if one.ref not in without]
            parts[name], files[path_of(name)] = pack(found)
        shown = newest([one for one in over(listed.entries, added) if one.ref not in without], listed.serial + 1)
        catalogue = Catalogue(shown.serial, parts)
        return Written({**files, LIST: shown.encode(), CATALOGUE: catalogue.encode()}, shown.entries, catalogue.count)

    def anew(self, entries: Iterable[Entry], serial: int) -> Written:
        """A list of these alone: in one file as far as that goes, unless it was cut before."""
        found = tuple(sorted(entries, key=lambda entry: entry.ref))
        whole = Listed(found, serial)
        if not is_cut(serial) and fits(raw := whole.encode()):
            return Written({LIST: raw}, found, len(found))
        serial = cut(serial)
        shown, files, parts = newest(found, serial), dict[str, bytes](), {}
        for name in sorted({entry.ref.name for entry in found}):
            parts[name], files[path_of(name)] = pack(entry for entry in found if entry.ref.name == name)
        return Written({**files, LIST: shown.encode(), CATALOGUE: Catalogue(serial, parts).encode()}, shown.entries, len(found))


def _newer(listed: Listed, catalogue: Catalogue) -> tuple[Entry, ...]:
    """What the one file has that the parts may not have yet."""
    return listed.entries if listed.serial > catalogue.serial else ()
