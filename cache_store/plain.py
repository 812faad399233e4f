"""Plain: reading what must be a regular file, whatever somebody or something put in its place."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from aot.cache_store.errors import Corrupt

# what opening says of a link (not followed) and of a socket
_OTHER_KINDS = (errno.ELOOP, errno.ENXIO)


def open_plain(path: Path, *, culprit: str = "") -> BinaryIO:
    """The file at `path`, for reading. It is never waited for: a FIFO without a writer would keep the process for ever.

    Raises Corrupt, with `culprit`, when something else than a regular file is there; FileNotFoundError; OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OTHER_KINDS:
            raise _no_file(path, culprit) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path, culprit)
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, limit: int = -1, *, culprit: str = "") -> bytes:
    """At most `limit` bytes of the file at `path`; raises as `open_plain`."""
    with open_plain(path, culprit=culprit) as file:
        return file.read(limit)


def is_plain(path: Path) -> bool:
    """Whether a regular file is at `path` itself, not behind a link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def in_the_way(path: Path) -> bool:
    """Whether something else than a regular file is at `path`."""
    return os.path.lexists(path) and not is_plain(path)


def _no_file(path: Path, culprit: str) -> Corrupt:
    return Corrupt(f"{path} is not a regular file.", culprit=culprit)
