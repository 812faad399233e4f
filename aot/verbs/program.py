"""Program: run another program as it is, with us looking on at the calls of its pipelines."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from aot.errors import BadInput

BOOT = Path(__file__).parent / "boot"


def run_hooked(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """The exit status of `command`, run with `variables` besides this process's own and our hook first on its path. Raises BadInput
    where it cannot be started."""
    path = os.pathsep.join([str(BOOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return _run(command, {**os.environ, **variables, "PYTHONPATH": path})


def _run(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Its exit status. An interrupt goes to the program too, which ends in its own time: servers are ended so, and have a Record."""
    try:
        child = subprocess.Popen(list(command), env=dict(environ))
    except OSError as error:
        raise BadInput(f"{command[0]!r} cannot be started: {error.strerror}.", remedy="write the command as in a shell.") from error
    with _passing_on(child):
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                continue


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within, what asks this process to end asks the program; only a main thread is asked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
