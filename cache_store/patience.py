"""Patience: how long something may take in all, and how often it is tried again."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from aot.cache_store.errors import Denied, Offline, StoreFull, TimedOut, Unreachable

T = TypeVar("T")

PULL_SECONDS = 600.0  # a whole pull, whatever it is made of
LOAD_SECONDS = 60.0  # a whole load, once the bytes are here
ASK_SECONDS = 30.0  # the questions to a remote store that come before a transfer
HAVE_SECONDS = 2.0  # the same, where what was pulled before would do
ATTEMPTS = 5
FIRST_PAUSE = 0.5  # s; doubled each time, and taken at random between half and the whole: many clients must not come back at once


class Deadline:
    """A moment after which there is no more waiting."""

    def __init__(self, seconds: float, what: str) -> None:
        self._ends, self._seconds, self._what = time.monotonic() + seconds, seconds, what

    @property
    def left(self) -> float:
        """Seconds; never less than 0."""
        return max(self._ends - time.monotonic(), 0.0)

    def check(self) -> None:
        """Raises TimedOut when it is over."""
        if not self.left:
            raise TimedOut(f"{self._what} took more than {self._seconds:.0f} s.", remedy="try again: what was transferred is kept.")


def retried(action: Callable[[], T], *, deadline: Deadline, gained: Callable[[], int] = lambda: 0) -> T:
    """What `action` returns, tried again where the store was unreachable, as long as there is time.

    An attempt after which `gained` is larger (bytes received, say) does not count. Raises what the last attempt raised, or TimedOut.
    """
    attempt, before = 0, gained()
    while True:
        deadline.check()
        try:
            return action()
        except (Denied, Offline, TimedOut, StoreFull):
            raise
        except Unreachable:
            attempt, before = (0 if gained() > before else attempt + 1), gained()
            if attempt >= ATTEMPTS:
                raise
        pause(attempt, deadline)


def in_time(action: Callable[[], T], *, seconds: float, what: str) -> T:
    """What `action` returns or raises; TimedOut when it has not after `seconds`.

    It then goes on in a thread that nobody waits for: a client in the middle of a request cannot be stopped.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(action())
        except BaseException as error:  # noqa: BLE001 - it is the asker's
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError as error:
        raise TimedOut(f"{what} took more than {seconds:.0f} s.", remedy="see whether it can be reached; try again.") from error


def pause(attempt: int, deadline: Deadline) -> None:
    """Wait before the next attempt, longer each time. Raises TimedOut rather than wait beyond the deadline."""
    time.sleep(min(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0), deadline.left))  # noqa: S311 - nothing secret about it
    deadline.check()
