"""Run: a program as it is, its pipelines served from artifacts; and the proof of what was used."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aot.artifact.ledger import component_of_call, component_of_miss
from aot.environment import RUN
from aot.verbs.hook import noted
from aot.verbs.program import run_hooked
from aot.verbs.served import ASKED


@dataclass(frozen=True, slots=True)
class Used:
    """What one component of a pipeline came to in all processes together: the artifacts it was served from, calls of graphs and calls
    that none served, why not, and the most seconds that loading the pipeline took in any."""

    pipeline: str
    component: str
    artifacts: tuple[str, ...]
    hits: int
    misses: int
    why: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Proof:
    """A program that is over: its exit status, and what was used. `compiled` are graphs that torch.compile made meanwhile."""

    status: int
    processes: int
    calls: int
    compiled: int
    used: tuple[Used, ...]
    notes: tuple[str, ...]

    def lacking(self) -> str:
        """Why this is no proof that everything was served; empty where it is."""
        if self.notes:
            return self.notes[0]
        if not self.processes:
            return "no process called a pipeline that we saw: none was called, or a Python ignores PYTHONPATH (-I, -E, sudo)"
        if missed := next((one for one in self.used if one.why), None):
            return f"{missed.pipeline} {missed.component}: {missed.why}"
        if self.compiled:
            return f"torch.compile made {self.compiled} graphs"
        return "" if any(one.hits for one in self.used) else "no call was served by a graph"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "lacking": self.lacking()}


def run_program(command: Sequence[str], *, store: str, options: Mapping[str, Any]) -> Proof:
    """Run `command`, the pipelines of all its processes served from `store` as `options` say, and eagerly where nothing serves them.

    Raises BadInput for a program that cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="aot-run-") as folder:
        (Path(folder) / ASKED).write_text(json.dumps({"store": store, "options": dict(options)}))
        status = run_hooked(command, {RUN: folder})
        reports = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*-*.json"))]
        notes = dict.fromkeys(noted(Path(folder)))
    compiled: Counter[int] = Counter()
    for report in reports:  # counted by process: each pipeline of one has the same
        compiled[report["pid"]] = max(compiled[report["pid"]], report.get("compiled", 0))
    calls = sum(report["calls"] for report in reports)
    return Proof(status, len({report["pid"] for report in reports}), calls, compiled.total(), tuple(_used(reports)), tuple(notes))


def _used(reports: list[dict[str, Any]]) -> list[Used]:
    found: dict[tuple[str, str], Used] = {}
    for report in reports:
        for component in dict.fromkeys((*report.get("components", ()), *report.get("served", ()))):
            at = report["pipeline"], component
            one, known = _of(report, component), found.get(at)
            found[at] = _added(known, one) if known else one
    return list(found.values())


def _of(report: Mapping[str, Any], component: str) -> Used:
    """A component in one report: its hits and misses are those whose sentence begins with it."""
    hits = sum(number for call, number in report["hits"].items() if component_of_call(call) == component)
    missed = {said: number for said, number in report["misses"].items() if number and component_of_miss(said) == component}
    why = report["unserved"].get(component) or next((said.partition(": ")[2] for said in missed), "")
    artifacts = tuple(dict.fromkeys(report["served"].get(component, ())))
    return Used(report["pipeline"], component, artifacts, hits, sum(missed.values()), why, sum(report["seconds"].values()))


def _added(one: Used, other: Used) -> Used:
    artifacts = tuple(dict.fromkeys((*one.artifacts, *other.artifacts)))
    hits, misses, why = one.hits + other.hits, one.misses + other.misses, one.why or other.why
    return Used(one.pipeline, one.component, artifacts, hits, misses, why, max(one.seconds, other.seconds))
