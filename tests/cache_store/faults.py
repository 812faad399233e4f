"""Faults at the n-th file operation, for all n, until the work succeeds: SQLite's method.

Python tells an audit hook of every file operation before it is made; there the operation can be refused with an errno, or the
process killed. Writes and fsync are not told of: the one is met by a limit on the size of files, the other is wrapped.
"""

import errno
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)
_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.listdir", "os.scandir"}


class _Hook:
    """The one hook of this process; hooks cannot be taken away."""

    installed = False
    act: Callable[[], None] | None = None
    below = ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.act is None or event not in _EVENTS or not arguments:
            return
        path = arguments[0]
        if isinstance(path, str | os.PathLike) and str(path).startswith(self.below):
            self.act()


_hook = _Hook()


@contextmanager
def faulty(below: Path, act: Callable[[], None]) -> Iterator[None]:
    """Within, `act` is called before each file operation on something below that folder."""
    if not _Hook.installed:
        sys.addaudithook(_hook)
        _Hook.installed = True
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        act()
        plain(descriptor)

    _hook.below, _hook.act, os.fsync = str(below), act, fsync
    try:
        yield
    finally:
        _hook.act, os.fsync = None, plain


class Countdown:
    """Acts at the n-th call; counts them all."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.count, self._at, self._act = 0, at, act

    def __call__(self) -> None:
        self.count += 1
        if self.count == self._at:
            self._act()


def refuse(code: int) -> Callable[..., None]:
    def act(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return act


def sometimes(chance: random.Random, share: float, act: Callable[[], None]) -> Callable[[], None]:
    def maybe() -> None:
        if chance.random() < share:
            act()

    return maybe


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(at: int, below: Path, work: Callable[[], None]) -> bool:
    """Do the work in a fork that is killed before its n-th file operation; whether it was, and not done before."""

    def child() -> None:
        with faulty(below, Countdown(at, kill)):
            work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0
