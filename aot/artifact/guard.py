"""Guard: what stands between an artifact's bytes and this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, cast

from aot.cache_store.digest import Digest
from aot.cache_store.lock import lock_file
from aot.cache_store.patience import Deadline
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted, Policy
from aot.errors import Crashed


@dataclass(frozen=True, slots=True)
class Guard:
    """The trust policy, and the marks that processes leave on this host while they enter an artifact's code.

    A mark whose process is gone means that the artifact took the process with it: it is not entered again here, so that a
    server that its supervisor restarts does not go down for ever on the same bytes.
    """

    policy: Policy
    home: Path

    @classmethod
    def of(cls, root: Path, environ: Mapping[str, str]) -> Self:
        """That of the store at `root`, with the pins of the lock file. Raises Malformed, RootRefused, Unreachable."""
        return cls(Policy.read(root, lock_file(environ)), root)

    def admit(self, store: Store, digest: Digest) -> Admitted:
        """The verified manifest, parsed only once it is trusted. Raises Untrusted, Crashed, Corrupt, Missing, Unreachable."""
        admitted = self.policy.admit_from(store, digest)
        if self.crashed(digest):
            raise Crashed(
                f"artifact {digest.short} ended a process on this host while its code was entered; it is not entered again.",
                remedy=f"`aot verify {digest.short} --exec` runs it in a process of its own and, if it comes back, forgets that.",
            )
        return admitted

    @contextmanager
    def entering(self, digest: Digest) -> Iterator[None]:
        """Leave a mark while within. Where the disk takes none there is no mark: that protects less, and breaks nothing."""
        mark = self.home / "loading" / f"{digest.hex}.{os.getpid()}.{_started(os.getpid())}"
        with suppress(OSError):
            mark.parent.mkdir(mode=0o700, exist_ok=True)
            mark.touch(mode=0o600)
        try:
            yield
        finally:  # an exception is an answer: only a process that is gone leaves its mark
            with suppress(OSError):
                mark.unlink()

    def crashed(self, digest: Digest) -> bool:
        """Whether a process that is gone left its mark."""
        return any(_gone(mark) for mark in self._marks(digest))

    def forget(self, digest: Digest) -> None:
        """Take away the marks of processes that are gone."""
        for mark in self._marks(digest):
            if _gone(mark):
                with suppress(OSError):
                    mark.unlink()

    def _marks(self, digest: Digest) -> list[Path]:
        with suppress(OSError):
            return [mark for mark in (self.home / "loading").iterdir() if mark.name.startswith(digest.hex)]
        return []


def _gone(mark: Path) -> bool:
    """Whether the very process that left it has ended: a number alone may be another's by now."""
    _, pid, started = mark.name.split(".")
    return _started(int(pid)) != started


def _started(pid: int) -> str:
    """When a process began, in clock ticks since boot (field 22 of proc(5) stat); empty if there is no such process."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


class Timed:
    """A stream that ends with TimedOut when the deadline is over, however slowly its bytes come."""

    def __init__(self, stream: BinaryIO, deadline: Deadline) -> None:
        self._stream, self._check = stream, deadline.check
        self.seek = stream.seek

    def read(self, size: int = -1) -> bytes:
        self._check()
        return self._stream.read(size)


@contextmanager
def open_timed(store: Store, digest: Digest, deadline: Deadline) -> Iterator[BinaryIO]:
    """A blob to be read by the deadline. Raises TimedOut within."""
    with store.open_blob(digest) as blob:
        yield cast(BinaryIO, Timed(blob, deadline))
