"""Record: run a program as it is, and keep what its pipelines were asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aot.cache_store.errors import CodedError
from aot.environment import WATCH
from aot.errors import BadInput
from aot.request.described import proved
from aot.request.merged import merged
from aot.request.saved import write
from aot.verbs.hook import noted
from aot.verbs.program import run_hooked


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
        status = run_hooked(command, {WATCH: folder})
        described = merged([json.loads(file.read_bytes()) for file in sorted(Path(folder).glob("*.json"))])
        notes = noted(Path(folder))
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
