"""The entry of a work process (`aot.compiler.process`): `python -m aot.cli.task NAME FD`, the request as the first line of input."""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from aot.cache_store.errors import CodedError
from aot.compiler.process import Parent
from aot.compiler.stage import stage
from aot.errors import BuildFailed
from aot.recipes import find
from aot.request.compilation import Compilation
from aot.request.recorded import Recorded
from aot.request.request import Request

if TYPE_CHECKING:
    from aot.request.record import Record


_OPENING_SECONDS = 600  # of a Record's file: the largest published models are made in 20


def main() -> int:
    """Do one task and report; what goes wrong is reported to the parent as what it is, with the traceback in the log."""
    name, events = sys.argv[1:]
    parent = Parent(int(events))
    message = parent.receive()
    try:
        _do(name, message, parent)
    except CodedError as error:
        traceback.print_exc()
        parent.tell_error(error)
        return 1
    except Exception as error:  # the process's last line of defence: anything else is a failed build, told as such
        traceback.print_exc()
        parent.tell_error(BuildFailed(f"{name}: {type(error).__name__}: {error}", remedy="the build log has the traceback."))
        return 1
    return 0


def _do(name: str, message: dict[str, Any], parent: Parent) -> None:
    if name == "canary":
        from aot.serving.canary import sing

        sing(message, parent)
        return
    if name == "rehearsal":
        from aot.serving.rehearsal import perform

        perform(message, parent)
        return
    if name in ("graphs", "cache"):
        _build(name, message, parent)
        return
    request = Request.from_json(message["request"])
    recipe = find(request.recipe)
    match name:
        case "calls":
            from aot.benchmark.measure import save_calls

            save_calls(recipe, request, message, parent)
        case "measure":
            from aot.benchmark.measure import measure

            measure(recipe, request, message, parent)
        case _:
            raise BuildFailed(f"unknown task {name!r}.")


def _build(name: str, message: dict[str, Any], parent: Parent) -> None:
    from aot.building.graphs import Planned, compile_artifact, fill_cache
    from aot.building.recorded import make_plan, plan_recorded
    from aot.model import attention

    request: Compilation
    planned: Planned
    # what graphs fall back to is the model with its adapters, and not one with slots
    given = message["request"] if name == "graphs" else message["request"] | {"lora_rank": 0, "lora_targets": []}
    if "recipe" in given:
        request = made = Request.from_json(given)
        planned = partial(make_plan, find(made.recipe), made)
    else:
        request = recorded = Recorded.from_json(given)
        found = _record(message, recorded.name, parent)
        attention.enter(found.attention, own="record" in message)
        planned = partial(plan_recorded, found, recorded)
    if name == "graphs":
        compile_artifact(planned, request, Path(message["directory"]), parent)
    else:
        fill_cache(planned, request, parent)


def _record(message: dict[str, Any], name: str, parent: Parent) -> Record:
    from aot.request.record import Record
    from aot.request.saved import Saved
    from aot.verbs.source import Source

    if "record" in message:
        sys.path += [folder for folder in message["path"] if folder not in sys.path]  # where the recorded modules' code is
        return Record.unpack(Path(message["record"]))
    kinds: dict[str, type[Source]] = {kind.__name__: kind for kind in get_args(Source)}
    found = kinds[message["source"]].from_json(message["fields"])
    if isinstance(found, Saved):
        faulthandler.dump_traceback_later(_OPENING_SECONDS, exit=True)  # what a stranger's config asks for may have no end
        opened = found.record()
        faulthandler.cancel_dump_traceback_later()
        return opened
    with stage(lambda told: parent.tell("stage", **told.to_event()), "record the pipeline's calls"):
        return found.record(name)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what was to be said is said, and taking torch down takes 2 s
