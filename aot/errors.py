"""What can go wrong with models and GPUs, and what each costs: the one table from error to exit code."""

from aot.cache_store.errors import (
    CodedError,
    Corrupt,
    Denied,
    Malformed,
    Missing,
    RolledBack,
    RootRefused,
    StoreError,
    StoreFull,
    Unreachable,
    Untrusted,
)


class BadInput(CodedError):
    """A value the user gave is not one that can be worked with; the message names the field and what is known."""

    code = "AOT-E101"


class Unsupported(CodedError):
    """What was asked is understood and cannot be done, here or at all; the message says why and what comes nearest."""

    code = "AOT-E102"


class Conflict(CodedError):
    """Two things compiled in one process need opposite process settings; whichever gave way would compute something else."""

    code = "AOT-E103"


class BadEnvironment(CodedError):
    """This machine lacks something that the work needs: a compiler, a supported torch."""

    code = "AOT-E301"


class BuildFailed(CodedError):
    """The compiler failed. Nothing was stored; the build log says more."""

    code = "AOT-E401"


class OutsideTolerance(CodedError):
    """The compiled outputs differ from eager by more than the mode allows. Nothing was stored."""

    code = "AOT-E402"


class Miss(CodedError):
    """`on_miss="error"`: no graph of an artifact serves this call; the message names the field that differs."""

    code = "AOT-E501"


class LoadFailed(CodedError):
    """An artifact was accepted, verified, and still could not be loaded."""

    code = "AOT-E502"


class Crashed(CodedError):
    """The artifact ended a process on this host before. It is not loaded here again until it is shown to be harmless."""

    code = "AOT-E503"


EXIT_CODES: dict[type[CodedError], int] = {
    BadInput: 2,
    Malformed: 2,
    Unsupported: 2,
    Conflict: 2,
    BadEnvironment: 3,
    BuildFailed: 4,
    OutsideTolerance: 5,
    Missing: 6,
    Corrupt: 7,
    Unreachable: 8,
    RootRefused: 8,
    StoreFull: 9,
    Miss: 10,
    LoadFailed: 10,
    Crashed: 10,
    Untrusted: 11,
    RolledBack: 11,
    Denied: 12,
    StoreError: 8,
    CodedError: 1,
}
INCOMPLETE = 13  # some of a matrix' cells failed; those that are finished are in the store
REGRESSED = 14  # something takes longer than it did, by more than was allowed
INTERRUPTED = 130


def exit_code(error: CodedError) -> int:
    """The exit code of the nearest type in the table."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)


def first_line(error: Exception) -> str:
    """What another program's error says at its beginning, to be part of a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
