"""Work: one cell built by `aot build` as a child process, and what it made pushed. It runs here, or wherever an engine puts it.

Imports no torch: a worker is a thread that waits. What it returns is a row, never bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from aot.environment import BUILD_CPUS, SIGNING_KEY, SIGNING_PEM

ROW = "AOT-ROW "  # begins the line that a worker without another way to answer writes last
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # the environment of a build that is to be the same wherever it runs
_TAIL = 4000  # characters of what a failed command said that travel with its row
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is told: the cell's name, the arguments of `aot build`, how many CPUs it may use, where what it makes goes (an
    empty text: it stays in the store that it was built in), and which GPU it must find there (an empty one: any machine will do)."""

    name: str
    arguments: tuple[str, ...]
    cpus: int = 1
    store: str = ""
    device: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a cell: the artifact's digest and size, or `status`, the exit code, and the sentence that was said. `log` is
    the build's, on the machine `host`."""

    name: str
    status: int = 0
    digest: str = ""
    key: str = ""
    fresh: bool = False
    size: int = 0
    seconds: float = 0.0
    build_seconds: float = 0.0
    said: str = ""
    log: str = ""
    host: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**value)


def attempt(task: Task) -> Row:
    """The row of a task, where nobody could try it elsewhere: a cell that fails is a row, and the others go on."""
    host = os.uname().nodename
    try:
        return work(task)
    except WrongDevice as error:
        return Row(task.name, status=3, said=str(error), host=host)
    except Exception as error:  # noqa: BLE001
        return Row(task.name, status=1, said=f"{type(error).__name__}: {error}", host=host)


class WrongDevice(Exception):
    """The machine has another GPU than the one that was asked for: its family's name is coarser. Worth another try elsewhere."""


def work(task: Task) -> Row:
    """Build, then push. Raises WrongDevice; all that a command says of its own is in the row."""
    if task.device:
        _check_device(task.device)
    started, host = time.perf_counter(), os.uname().nodename
    environ = {**os.environ, **task.environ, **_limits(task.cpus)}
    done = _run(["build", *task.arguments, "--json"], environ)
    built = time.perf_counter() - started
    if done.returncode:
        return _failed(task, done, time.perf_counter() - started, host, built)
    made = json.loads(done.stdout)
    if task.store:
        done = _run(["push", made["digest"], task.store, "--json"], environ)
        if done.returncode:
            return _failed(task, done, time.perf_counter() - started, host, built)
    return Row(
        task.name,
        digest=made["digest"],
        key=made["ref"],
        fresh=made["fresh"],
        size=made["size"],
        seconds=round(time.perf_counter() - started, 2),
        build_seconds=round(built, 2),
        log=made["log"],
        host=host,
    )


def _failed(task: Task, done: subprocess.CompletedProcess[str], seconds: float, host: str, built: float) -> Row:
    return Row(
        task.name,
        status=done.returncode if done.returncode > 0 else 128 - done.returncode,
        seconds=round(seconds, 2),
        build_seconds=round(built, 2),
        said=sentence(done.stderr),
        log=done.stderr[-_TAIL:],
        host=host,
    )


def command(words: Sequence[str]) -> list[str]:
    """Of `aot` with these words, by this very interpreter and package."""
    return [sys.executable, "-m", "aot.cli.app", *words]


def sentence(stderr: str) -> str:
    """What a command that failed said last of all: our own error with its remedy, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith(("error: ", "fix: "))]
    return " ".join(told) or (lines[-1] if lines else "it ended without a word")


def _run(words: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    child = subprocess.Popen(
        command(words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environ),
        preexec_fn=_end_with_parent,  # noqa: PLW1509
    )
    _children.add(child)
    try:
        out, said = child.communicate()
    finally:
        child.kill()
        _children.discard(child)
    return subprocess.CompletedProcess(child.args, child.returncode, out, said)


_children: set[subprocess.Popen[str]] = set()


def end_children() -> None:
    """End what any thread of this process runs: the work of a driver that is interrupted. Nothing of a build is stored before its end."""
    for child in list(_children):
        child.terminate()


def _end_with_parent() -> None:
    """A worker that is killed leaves no compiler running."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _limits(cpus: int) -> dict[str, str]:
    """What keeps a build to its share: else every cell would begin a thread for every core of the machine."""
    count = str(max(cpus, 1))
    package = str(Path(__file__).parents[2])  # found by children as it was by this process
    path = os.pathsep.join(dict.fromkeys([*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), package]))
    return {
        BUILD_CPUS: count,
        "TORCHINDUCTOR_COMPILE_THREADS": count,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "PYTHONPATH": path,
    }


def _check_device(name: str) -> None:
    from aot.machine.device import gpus_here

    if not gpus_here() or gpus_here()[0] != name:
        raise WrongDevice(f"this machine has {gpus_here()[:1] or 'no GPU'}, and the cell needs {name}")


@contextmanager
def _signing(pem: str) -> Iterator[dict[str, str]]:
    """The key as a file, for as long as the work takes."""
    if not pem:
        yield {}
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "signing.pem"
        file.touch(0o600)
        file.write_text(pem)
        yield {SIGNING_KEY: str(file)}


def main() -> None:
    """A worker that is a process of its own: `python -m aot.fleet.work TASK`."""
    task = Task(**json.loads(sys.argv[1]))
    with _signing(os.environ.pop(SIGNING_PEM, "")) as environ:
        row = attempt(replace(task, environ={**task.environ, **environ}))
    sys.stdout.write(f"{row.log if row.status else row.digest}\n{ROW}{json.dumps(row.to_json())}\n")
    sys.stdout.flush()
    sys.exit(row.status)


if __name__ == "__main__":
    main()
