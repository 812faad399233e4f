"""Process: work done in a fresh Python process, which reports by events and dies with its parent."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from aot.cache_store.errors import CodedError
from aot.errors import EXIT_CODES, BuildFailed

ENTRY = "aot.cli.task"
STARTED = time.perf_counter()  # of this interpreter, as good as: the clock is one for all processes of a host

Event: TypeAlias = dict[str, Any]


class Process:
    """A task in its own interpreter. What it and its compilers print goes to `log`; its events come from `events`."""

    def __init__(
        self,
        task: str,
        request: Mapping[str, Any],
        *,
        log: Path,
        environ: Mapping[str, str],
        python: str = sys.executable,
        seconds: int = 0,
    ) -> None:
        """`python` is the interpreter; after `seconds`, unless 0, the process is killed."""
        self._task, self._log, self._seconds = task, log, seconds
        reading, writing = os.pipe()
        try:
            with open(log, "ab") as output:
                self._child = subprocess.Popen(
                    [python, "-P", "-m", ENTRY, task, str(writing)],  # -P: a folder that is called as a package of ours is none
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=(writing,),
                    env=dict(environ),
                )
        finally:
            os.close(writing)
        self._events = os.fdopen(reading, encoding="utf-8")
        self._expired = threading.Event()
        self._timer = threading.Timer(seconds, self._expire) if seconds else None
        if self._timer:
            self._timer.start()
        self.send(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The child is told to go by the end of its input, and killed if it does not."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._timer:
            self._timer.cancel()
        self._events.close()

    def _expire(self) -> None:
        self._expired.set()
        self._child.kill()

    def send(self, value: Any) -> None:
        """One line to the child; it may be gone already, which `events` will tell."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(value).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass

    def events(self) -> Iterator[Event]:
        """Events until the child is done. Raises the error that it reported, or BuildFailed if it died without a word."""
        done = False
        for line in self._events:
            event = json.loads(line)
            if event["event"] == "error":
                raise _error(event)
            done = event["event"] == "done"
            yield event
        if not done:
            code = self._child.wait()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            if self._expired.is_set():
                how = f"took more than {self._seconds} s, and was ended"
            raise BuildFailed(
                f"the {self._task} process {how} before it was done.",
                remedy=f"see {self._log}; signal 9 usually means that memory ran out.",
            )


class Parent:
    """The other end, in the child: the request, events, and the end of the parent."""

    def __init__(self, events: int) -> None:
        self._events = os.fdopen(events, "w", encoding="utf-8")
        self._lines: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with open(0, encoding="utf-8", closefd=False) as lines:  # not sys.stdin, which a fork closes, waiting for its reader
            for line in lines:
                self._lines.put(json.loads(line))
        os._exit(3)  # the parent is gone, or has no more use for this: leave at once, whatever a compiler is doing

    def receive(self) -> Any:
        """The parent's next message."""
        return self._lines.get()

    def tell(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=self._events, flush=True)

    def tell_error(self, error: CodedError) -> None:
        self.tell("error", kind=type(error).__name__, message=error.message, remedy=error.remedy)


def _error(event: Event) -> CodedError:
    """The child's error, as the type it was."""
    kinds = {kind.__name__: kind for kind in EXIT_CODES}
    return kinds.get(event["kind"], BuildFailed)(event["message"], remedy=event["remedy"])
