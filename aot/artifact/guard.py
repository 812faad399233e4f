"""Guard: what stands between an artifact's bytes and this process."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import BinaryIO, Self, cast

from aot.cache_store.digest import Digest
from aot.cache_store.lock import lock_file
from aot.cache_store.patience import Deadline
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted, Policy
from aot.errors import Crashed


@dataclass(frozen=True, slots=True)
class Guard:
    """The trust policy, and the marks that processes leave on this disk while they enter an artifact's code.

    A mark is a file that its process has locked, and that a fatal signal of that process writes into. One with content means
    that the artifact took the process with it: it is not entered again here, so that a server that its supervisor restarts
    does not go down for ever on the same bytes. An empty one that nobody holds is of a process that was killed from outside,
    which says nothing of the artifact. Neither asks for a process by its number: containers on one disk have numbers of their own.
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
        if crash := self._crash(digest):
            raise Crashed(
                f"artifact {digest.short} ended a process on this host while its code was entered ({crash}); it is not entered again.",
                remedy=f"`aot verify {digest.short} --exec` runs it in a process of its own and, if it comes back, forgets that.",
            )
        return admitted

    @contextmanager
    def entering(self, digest: Digest) -> Iterator[None]:
        """Leave a mark while within. Where the disk takes none there is no mark: that protects less, and breaks nothing.

        One thread at a time is within, since a fatal signal writes into one file; the same thread may nest. Within,
        `faulthandler` writes into the mark instead of where it did; afterwards it is disabled if it was before. Else it is
        enabled on `sys.stderr`, or on `sys.__stderr__` where that has no descriptor: the file that it had cannot be asked for.
        """
        with _process.lock, ExitStack() as within:
            with suppress(OSError):
                mark = _Mark.leave(self.home / "loading", digest)
                within.callback(_process.come_out, mark)  # an exception is an answer: only a process that is gone leaves its mark
                _process.enter(mark)
            yield

    def crashed(self, digest: Digest) -> bool:
        """Whether a fatal signal wrote into a mark. Takes away the marks of processes that were killed from outside."""
        return bool(self._crash(digest))

    def forget(self, digest: Digest) -> None:
        """Take away the marks of crashes, and of processes that were killed from outside."""
        for mark in self._marks(digest):
            if _crash(mark):
                with suppress(OSError):
                    mark.unlink()

    def _crash(self, digest: Digest) -> str:
        return next(filter(None, map(_crash, self._marks(digest))), "")

    def _marks(self, digest: Digest) -> list[Path]:
        with suppress(OSError):
            return [mark for mark in (self.home / "loading").iterdir() if mark.name.startswith(f"{digest.hex}.")]
        return []


def _crash(mark: Path) -> str:
    """What a fatal signal wrote first, as "Fatal Python error: Segmentation fault"; empty if none did, or nothing can be read."""
    with suppress(OSError):
        _sweep(mark)
    with suppress(OSError), mark.open("rb") as file:
        return file.readline(200).decode("ascii", "replace").strip()
    return ""


def _sweep(mark: Path) -> None:
    """Remove a mark that is empty and that nobody holds. Raises OSError where it is held, gone or not to be written."""
    with mark.open("r+b") as file:  # not "rb": NFS locks only what may be written
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_size == 0:  # asked under the lock: its process may have crashed a moment ago
            mark.unlink()


@dataclass(frozen=True, slots=True)
class _Mark:
    """A file that this process has locked. The lock goes when the process does, however it ends and wherever one looks from."""

    path: Path
    descriptor: int

    @classmethod
    def leave(cls, directory: Path, digest: Digest) -> Self:
        """Raises OSError where the disk takes no file, or locks none."""
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=directory)
        path = Path(name)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a mark only once it is locked: before, whoever looks would take its process for killed, and remove it
            return cls(path.rename(path.with_name(f"{digest.hex}{path.name}")), descriptor)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        self.let_go()

    def let_go(self) -> None:
        with suppress(OSError):
            os.close(self.descriptor)


@dataclass(slots=True)
class _Process:
    """What this process is within. Kept for the process and not by a guard: so is what handles its fatal signals."""

    lock: RLock = field(default_factory=RLock)
    marks: list[_Mark] = field(default_factory=list)  # outermost first
    handled: bool = False  # whether faulthandler was enabled before the outermost

    def enter(self, mark: _Mark) -> None:
        if not self.marks:
            self.handled = faulthandler.is_enabled()
        self.marks.append(mark)
        self._handle(self.marks)

    def come_out(self, mark: _Mark) -> None:
        if mark not in self.marks:  # it was forked within: the mark is its parent's
            return
        others = [other for other in self.marks if other is not mark]
        self._handle(others)
        self.marks = others
        mark.remove()

    def forked(self) -> None:
        """In a child: it is within nothing, and its own crash is none of the artifact's. A thread that held the lock is not here."""
        if self.marks:
            self._handle([])
        for mark in self.marks:
            mark.let_go()  # not removed, and not unlocked: its parent holds it still
        self.lock, self.marks = RLock(), []

    def _handle(self, marks: list[_Mark]) -> None:
        """Let fatal signals write into the innermost of `marks`; without any, where they did before."""
        if marks:
            faulthandler.enable(file=marks[-1].descriptor)
        elif not (self.handled and _enabled_on_stderr()):
            faulthandler.disable()


def _enabled_on_stderr() -> bool:
    """Enable faulthandler there; False where no stderr has a descriptor, as in a notebook or a daemon."""
    for stream in filter(None, (sys.stderr, sys.__stderr__)):
        with suppress(AttributeError, OSError, RuntimeError, ValueError):  # as streams without a descriptor, and closed ones, raise
            faulthandler.enable(file=stream)
            return True
    return False


_process = _Process()
os.register_at_fork(after_in_child=_process.forked)


class Timed:
    """A stream that ends with TimedOut when the deadline is over, however slowly its bytes come."""

    def __init__(self, stream: BinaryIO, deadline: Deadline) -> None:
        self._stream, self._check = stream, deadline.check
        self.seek = stream.seek

    def read(self, size: int = -1) -> bytes:
        self._check()
        return self._stream.read(size)

    def fileno(self) -> int:
        """The file that it is, if one, for who reads several places of it at once and asks each time. Raises OSError for other streams."""
        self._check()
        return self._stream.fileno()


@contextmanager
def open_timed(store: Store, digest: Digest, deadline: Deadline) -> Iterator[BinaryIO]:
    """A blob to be read by the deadline. Raises TimedOut within."""
    with store.open_blob(digest) as blob:
        yield cast(BinaryIO, Timed(blob, deadline))
