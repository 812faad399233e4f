"""Record: run a program as it is, and keep what its pipelines were asked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aot.cache_store.errors import CodedError
from aot.environment import WATCH
from aot.errors import BadInput
from aot.request.described import proved
from aot.request.merged import merged
from aot.request.saved import write

BOOT = Path(__file__).parent / "boot"


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that is over: its exit status, the files of the Records by the pipelines' names, and what could not be recorded."""

    status: int
    files: dict[str, Path]
    notes: tuple[str, ...]


def record_program(command: Sequence[str], output: Path) -> Ran:
    """Run `command`, whose pipelines compute as ever, and write one Record a pipeline, its calls in all processes together.

    Of several pipelines each file is called after `output` and the pipeline. Raises BadInput for a program that cannot be started
    and a folder that is not there.
    """
    if not output.absolute().parent.is_dir():
        raise BadInput(f"-o {output}: there is no folder {output.absolute().parent}.", remedy="make it, or name another file.")
    with tempfile.TemporaryDirectory(prefix="aot-record-") as folder:
        path = os.pathsep.join([str(BOOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        status = _run(command, {**os.environ, WATCH: folder, "PYTHONPATH": path})
        described = merged([json.loads(file.read_bytes()) for file in sorted(Path(folder).glob("*.json"))])
        told = [json.loads(file.read_bytes()) for file in sorted(Path(folder).glob("*.note"))]
    notes = [f"{note['pipeline']}: {note['error']}" for note in told]
    found = []
    for value in described:
        try:
            found.append(proved(value, also=[root["class"].partition(":")[0] for root in value["roots"].values()]))
        except CodedError as error:
            notes.append(f"{value['name']}: {error.message}")
    files: dict[str, Path] = {}
    for value in found:
        name = value["name"]
        file = output if len(found) == 1 else output.with_name(f"{output.stem}-{name}{'' if name not in files else f'-{len(files)}'}.json")
        write(value, file)
        files[name if name not in files else f"{name}-{len(files)}"] = file
    return Ran(status, files, tuple(dict.fromkeys(notes)))


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
