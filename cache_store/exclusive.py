"""Exclusive: what one process at a time does, on a disk that has locks. On one that has none all do it at once."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

# what flock says of a disk that has no locks: NFS without its lock daemon, Lustre and FUSE mounts that do not support it
_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)

_PROBING = 0.12  # seconds: three attempts of filelock's


@contextmanager
def exclusive(path: Path, *, seconds: float = -1) -> Iterator[bool]:
    """Hold the lock of this file, which is made; yields False where its disk has no locks, and nothing is held.

    Negative `seconds` wait for as long as it takes, 0 for what another takes to see whether there are locks. Raises TimeoutError
    when another holds it until then, OSError.
    """
    if not _has_locks(path):
        yield False
        return
    lock = FileLock(path, mode=0o600)
    lock.acquire(timeout=max(seconds, _PROBING) if seconds >= 0 else -1)
    try:
        yield True
    finally:
        lock.release()


def _has_locks(path: Path) -> bool:
    """Asked of the very file. filelock itself waits for ever, or takes a kind of lock that a killed process leaves behind."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _WITHOUT  # another's, or a matter of its own, of which the lock will tell
    finally:
        os.close(descriptor)
    return True
