"""Record: run a program as it is, and keep what its pipelines were asked for."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aot.environment import WATCH
from aot.errors import BadInput
from aot.request.merged import merged

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
        try:
            status = subprocess.call(list(command), env={**os.environ, WATCH: folder, "PYTHONPATH": path})
        except OSError as error:
            raise BadInput(f"{command[0]!r} cannot be started: {error.strerror}.", remedy="write the command as in a shell.") from error
        found = merged([json.loads(file.read_bytes()) for file in sorted(Path(folder).glob("*.json"))])
        notes = [json.loads(file.read_bytes()) for file in sorted(Path(folder).glob("*.note"))]
    files: dict[str, Path] = {}
    for value in found:
        name = value["name"]
        file = output if len(found) == 1 else output.with_name(f"{output.stem}-{name}{'' if name not in files else f'-{len(files)}'}.json")
        file.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")))
        files[name if name not in files else f"{name}-{len(files)}"] = file
    return Ran(status, files, tuple(dict.fromkeys(f"{note['pipeline']}: {note['error']}" for note in notes)))
