"""History: a remote store must not show less than it showed before."""

import json
from pathlib import Path
from typing import Protocol, runtime_checkable

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, RolledBack
from aot.cache_store.local import LocalStore
from aot.cache_store.plain import read_plain
from aot.cache_store.store import Store
from aot.cache_store.written import write_hint


@runtime_checkable
class Sequenced(Protocol):
    """A store whose states are numbered."""

    def state(self) -> tuple[int, str] | None:
        """The number of its last write and what identifies the list of artifacts then; None for a revision pinned by its commit."""


def check_history(remote: Store, local: LocalStore) -> None:
    """Remember the remote's state. Raises RolledBack when it is older than the one remembered, or another of the same number.

    An attacker, or a mirror, could serve an old list for ever otherwise, and with it artifacts that were replaced for a reason.
    """
    state = remote.state() if isinstance(remote, Sequenced) else None
    if state is None:
        return
    note = local.root / "v1" / "remotes" / Digest.of(remote.location.encode()).hex
    before = _read(note)
    if before and (state[0] < before[0] or (state[0] == before[0] and state[1] != before[1])):
        raise RolledBack(
            f"{remote.location} shows write {state[0]} of its list of artifacts, and showed {before[0]} before: its branch was moved.",
            remedy=f"ask its owner. If it is meant, pin the commit ({remote.location}@COMMIT), or delete {note} to forget what was seen.",
        )
    if state != before:
        write_hint(note, encode({"serial": state[0], "list": state[1]}))


def _read(note: Path) -> tuple[int, str] | None:
    """What is remembered; None where nothing is, or nothing that can be read."""
    try:
        value = json.loads(read_plain(note))
        return int(value["serial"]), str(value["list"])
    except (OSError, ValueError, KeyError, TypeError, Corrupt):
        return None
