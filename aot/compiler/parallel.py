"""Parallel: work done in forks of this process, several at once. Compiling is one thread's work, and most builds have several graphs."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from aot.cache_store.errors import CodedError
from aot.environment import BUILD_CPUS
from aot.errors import BadInput, BuildFailed

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def cpus(environ: Mapping[str, str] = os.environ) -> int:
    """How many compilations may run at once: as many as there are processors for this process, or as its user says."""
    here = len(os.sched_getaffinity(0))
    given = environ.get(BUILD_CPUS, "")
    if given and not (given.isdecimal() and int(given)):
        raise BadInput(f"{BUILD_CPUS}={given!r} is not a number of processors.", remedy=f"{BUILD_CPUS}=1, or unset it.")
    return min(here, int(given)) if given else here


def peak_memory() -> int:
    """Bytes that this process and as many of its forks as run at once took at most."""
    own, forks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1024 * (int(own) + cpus() * int(forks))


def in_forks(work: Sequence[Callable[[], T]], *, at_once: int, begun: Callable[[int], None] = lambda _: None) -> Iterator[tuple[int, T]]:
    """What each of `work` returns, with its place, as it is done; run in forks of this process, which see all that it holds.

    `begun` hears of each when it begins. Results are pickled, the functions are not. With one at once, or one to do, it is
    done here. Raises the first CodedError that one of them raised, BuildFailed for any other error or when a fork dies; the
    others are then ended.
    """
    if min(at_once, len(work)) <= 1:
        for place, function in enumerate(work):
            begun(place)
            yield place, function()
        return
    context, waiting, running = get_context("fork"), list(enumerate(work)), dict[Connection, tuple[int, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                place, function = waiting.pop(0)
                receiving, sending = context.Pipe(duplex=False)
                fork = context.Process(target=_run, args=(function, sending, os.getpid()), daemon=True)
                fork.start()
                begun(place)
                sending.close()
                running[receiving] = place, fork
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                place, fork = running.pop(connection)
                yield place, _result(connection, fork)
    finally:
        for _, fork in running.values():
            fork.kill()


def _result(connection: Connection, fork: Any) -> Any:
    try:
        done, value = connection.recv()
    except EOFError as error:
        fork.join()
        raise BuildFailed(
            f"a compiling process was killed by signal {-fork.exitcode}." if fork.exitcode < 0 else "a compiling process ended early.",
            remedy="signal 9 usually means that memory ran out.",
        ) from error
    fork.join()
    if not done:
        raise value
    return value


def _run(function: Callable[[], Any], sending: Connection, parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a build that is killed leaves nothing running
    if os.getppid() != parent:
        os._exit(1)
    import torch

    torch.set_num_threads(1)  # a fork has none of the parent's OpenMP threads, and would wait for them for ever
    try:
        sending.send((True, function()))
    except CodedError as error:
        traceback.print_exc()
        sending.send((False, error))
    except Exception as error:  # told to the parent as what it is: a failed build; the traceback is in the log
        traceback.print_exc()
        sending.send((False, BuildFailed(f"{type(error).__name__}: {error}", remedy="the build log has the traceback.")))
