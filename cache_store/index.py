"""Index: what a local store's manifests say, in one file, so that a listing does not open ten thousand.

It is a hint that can be thrown away: refs and manifests are what counts. A directory of refs is read again when its time of
change moved, or was so recent when it was read that it may have moved unseen.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cache_store.digest import Digest
from cache_store.errors import CodedError, Malformed
from cache_store.manifest import Manifest
from cache_store.store import Entry, Ref

_FILE = "index.sqlite"
_SETTLED = 2_000_000_000  # ns; file systems stamp times in steps of up to a clock tick, some of 2 s
_BUSY = 5.0  # s to wait for another process that is writing the index
_VERSION = 1
# keys have most of their parts in common: each is kept once, and a key is the numbers of its parts, with a blank around each
_TABLES = """
CREATE TABLE directories (name TEXT PRIMARY KEY, changed INTEGER);
CREATE TABLE refs (name TEXT, key TEXT, stamp TEXT, digest TEXT, PRIMARY KEY (name, key)) WITHOUT ROWID;
CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT, value TEXT, UNIQUE (name, value));
CREATE TABLE heads (digest TEXT PRIMARY KEY, created TEXT, size INTEGER, key TEXT, rest TEXT);
"""
_SELECT = "SELECT name, refs.key, digest, created, size, heads.key, rest FROM refs JOIN heads USING (digest)"


class Index:
    """Of the tree `v1` of a store; `read` gives a manifest, verified."""

    def __init__(self, tree: Path, read: Callable[[Digest], Manifest]) -> None:
        self._tree, self._read = tree, read

    def entries(self, about: Collection[str], within: Mapping[str, str], newest: int | None) -> Iterator[Entry]:
        """As `Store.entries`. One whose manifest cannot be read has an empty key."""
        try:
            rows, parts = self._rows(self._tree / _FILE, about, within, newest)
        except sqlite3.Error:  # damaged, locked for too long, or on a disk that cannot be written: do without
            with suppress(OSError):
                (self._tree / _FILE).unlink()
            rows, parts = self._rows(":memory:", about, within, newest)
        for name, key, digest, created, size, ids, rest in rows:
            told = (_Told(rest, "producer"), _Told(rest, "measured"), _Told(rest, "certificate"))
            yield Entry(Ref(name, Digest(key)), Digest(digest), created, size, dict(map(parts.__getitem__, ids.split())), *told)

    def _rows(
        self, file: Path | str, about: Collection[str], within: Mapping[str, str], newest: int | None
    ) -> tuple[list[tuple[str, str, str, str, int, str, str]], dict[str, tuple[str, str]]]:
        with closing(sqlite3.connect(file, timeout=_BUSY)) as database:
            self._refresh(database)
            parts = {str(id): (name, value) for id, name, value in database.execute("SELECT id, name, value FROM parts")}
            some = [f" {id} " for id, (_, value) in parts.items() if value in about]
            every = [f" {id} " for id, part in parts.items() if part in within.items()]
            if (about and not some) or len(every) < len(within):
                some, every = [" none "], []
            any_of = " OR ".join(["instr(heads.key, ?)"] * len(some)) or "1"
            all_of = " AND ".join(["instr(heads.key, ?)"] * len(every)) or "1"
            limit = f" ORDER BY created DESC LIMIT {int(newest)}" if newest is not None else ""
            where = f"WHERE ({any_of}) AND ({all_of}) OR created = ''{limit}"
            return database.execute(f"{_SELECT} {where}", (*some, *every)).fetchall(), parts

    def _refresh(self, database: sqlite3.Connection) -> None:
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f'DROP TABLE "{table}"')
            database.executescript(_TABLES)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        known = dict(database.execute("SELECT name, changed FROM directories"))
        found = {entry.name: entry for entry in os.scandir(self._tree / "refs") if entry.is_dir(follow_symlinks=False)}
        stale = [name for name, entry in found.items() if known.get(name) != entry.stat(follow_symlinks=False).st_mtime_ns]
        gone = set(known) - set(found)
        if not stale and not gone:
            return
        with database:
            for name in gone:
                database.execute("DELETE FROM refs WHERE name = ?", (name,))
                database.execute("DELETE FROM directories WHERE name = ?", (name,))
            for name in stale:
                self._scan(database, name)
            database.execute("DELETE FROM heads WHERE digest NOT IN (SELECT digest FROM refs)")

    def _scan(self, database: sqlite3.Connection, name: str) -> None:
        """Read one directory of refs anew: only files that changed are opened, only manifests not seen before are parsed."""
        directory = self._tree / "refs" / name
        changed = directory.stat().st_mtime_ns
        known = dict(database.execute("SELECT key, stamp FROM refs WHERE name = ?", (name,)))
        stamps = {}
        for entry in os.scandir(directory):
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                stamps[entry.name] = f"{status.st_mtime_ns}.{status.st_ino}"
        database.executemany("DELETE FROM refs WHERE name = ? AND key = ?", [(name, key) for key in set(known) - set(stamps)])
        for key, stamp in stamps.items():
            if known.get(key) == stamp:
                continue
            database.execute("DELETE FROM refs WHERE name = ? AND key = ?", (name, key))
            with suppress(Malformed, OSError):  # a stray file is not a ref
                digest = Digest.parse((directory / Ref(name, Digest(key)).key.hex).read_text().rstrip("\n"))
                database.execute("INSERT INTO refs VALUES (?, ?, ?, ?)", (name, key, stamp, digest.hex))
                self._head(database, digest)
        settled = changed if time.time_ns() - changed > _SETTLED else -1
        database.execute("INSERT OR REPLACE INTO directories VALUES (?, ?)", (name, settled))

    def _head(self, database: sqlite3.Connection, digest: Digest) -> None:
        if database.execute("SELECT 1 FROM heads WHERE digest = ? AND created != ''", (digest.hex,)).fetchone():
            return
        try:
            manifest = self._read(digest)
        except CodedError:
            row = ("", 0, "", "{}")
        else:
            rest = {"producer": manifest.producer, "measured": manifest.measured, "certificate": manifest.certificate}
            row = (manifest.created, manifest.size, self._ids(database, manifest.key), json.dumps(rest))
        database.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)", (digest.hex, *row))

    def _ids(self, database: sqlite3.Connection, key: Mapping[str, str]) -> str:
        database.executemany("INSERT OR IGNORE INTO parts (name, value) VALUES (?, ?)", key.items())
        found = [database.execute("SELECT id FROM parts WHERE name = ? AND value = ?", part).fetchone()[0] for part in key.items()]
        return "".join(f" {id} " for id in found)


class _Told(Mapping[str, Any]):
    """One object of a JSON text, read when something of it is wanted: a listing of thousands wants nothing of it."""

    __slots__ = ("_name", "_text")

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._text).get(self._name, {})
        return found

    def __getitem__(self, key: str) -> Any:
        return self._read()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())
