"""What can go wrong with bytes and names.

*Missing*, *corrupt* and *unreachable* are three types, because a caller answers each differently.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar


class CodedError(Exception):
    """An error with a stable code, a sentence that names the field, and the remedy."""

    code: ClassVar[str]

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.code} {self.message}" + (f" Fix: {self.remedy}" if self.remedy else "")


class StoreError(CodedError):
    """A store could not do what was asked."""

    code = "AOT-E200"


class Malformed(StoreError):
    """A name, digest or address that is not of its form."""

    code = "AOT-E201"


class Missing(StoreError):
    """The bytes are not in this store. The caller falls through to the next way."""

    code = "AOT-E202"


class Corrupt(StoreError):
    """The bytes are not the bytes that were promised. The caller quarantines them."""

    code = "AOT-E203"

    def __init__(self, message: str, *, culprit: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.culprit = culprit  # the text of the digest or ref whose bytes are wrong


class Unreachable(StoreError):
    """The store cannot be read or written at all. The caller stops and says so."""

    code = "AOT-E204"


class StoreFull(StoreError):
    """No space or quota left. Nothing was committed."""

    code = "AOT-E205"


class RootRefused(StoreError):
    """The store's directory is not one whose contents can be trusted."""

    code = "AOT-E206"


class Untrusted(StoreError):
    """Neither pinned nor signed by who must sign it, or revoked. Nothing of it was parsed further, or loaded."""

    code = "AOT-E207"


class Denied(Unreachable):
    """The store is there and does not let this user in, or not write: no token, a wrong one, a gated or read-only place."""

    code = "AOT-E208"


class Offline(Unreachable):
    """The user said not to ask: it is not tried again."""


class TimedOut(Unreachable):
    """It took longer than it may. What was transferred so far is kept, and the next attempt goes on from there."""

    code = "AOT-E209"


class RolledBack(StoreError):
    """The store shows an older state than it showed before: somebody moved its branch, or serves an old copy."""

    code = "AOT-E210"


class Busy(Unreachable):
    """The store could not take a write now although it was tried again and again. Nothing of it is visible."""

    code = "AOT-E211"


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn what the operating system says about `path` into a store error that names it."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise full(error, str(where)) or Unreachable(
            f"{where}: {error.strerror or error}.",
            remedy="make the store's directory readable and writable by you, or set AOT_HOME to one that is.",
        ) from error


def full(error: OSError, where: str) -> StoreFull | None:
    """What is raised for an error of the operating system that means "no space"; None for any other."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    return StoreFull(
        f"no space left to write {where}; nothing was committed.",
        remedy="free some space, run `aot prune --older-than 30d`, or set AOT_HOME to a larger disk.",
    )
