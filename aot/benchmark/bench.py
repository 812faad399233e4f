"""Bench: the start-up ledger. Each way in its own fresh process; then their steady states, interleaved."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aot.benchmark.measurement import COMPARED, WARMED_BY, Measurement, Way
from aot.building.build import build, fresh, wait_for
from aot.cache_store.local import LocalStore
from aot.compiler.process import Event, Process
from aot.compiler.stage import Progress, stage
from aot.environment import GRAPH_CACHE, INDUCTOR_DIRECTORY
from aot.machine.target import Target
from aot.request.request import Request


@dataclass(slots=True)
class Account:
    """What one way cost. Seconds unless the name says otherwise; calls in the order of `Ledger.calls`."""

    way: Way
    setup_s: float
    parts_s: dict[str, float]  # of the setup: find, verify, materialise, compare, load
    before_s: dict[str, float]  # what every way waits for before: the interpreter, imports, the pipeline with its weights
    first_call_s: list[float]
    against_eager: dict[str, Any]
    steady_s: list[float] = field(default_factory=list)  # median over rounds of each call's median
    pipeline_first_s: float = 0.0
    pipeline_s: float = 0.0
    iterations_per_s: float = 0.0
    max_memory: int = 0  # bytes
    inductor_imported: bool = False

    @property
    def startup_s(self) -> float:
        """From a pipeline with its weights to the first output of every component."""
        return self.setup_s + sum(self.first_call_s)

    @property
    def line_s(self) -> float:
        """The whole line, from the start of `python` to the first picture."""
        return sum(self.before_s.values()) + self.startup_s + self.pipeline_first_s


@dataclass(frozen=True, slots=True)
class StartupLedger:
    """All ways, measured in one run on one machine."""

    request: Request
    digest: str
    size: int
    calls: list[str]
    accounts: dict[Way, Account]
    machine: dict[str, Any]

    def ratios(self) -> dict[str, float]:
        """What is compared across machines: ratios and one difference, within one run, of the ways that it measured."""
        eager, artifact = self.accounts[Way.EAGER], self.accounts[Way.ARTIFACT]
        warm = self.accounts.get(Way.JIT_WARM)
        compiled = [account for way, account in self.accounts.items() if way not in COMPARED]
        found = {
            **{f"{_word(account.way)}_over_artifact": account.startup_s / artifact.startup_s for account in compiled},
            **{f"line_{_word(account.way)}_over_artifact": account.line_s / artifact.line_s for account in (eager, *compiled)},
            "artifact_minus_eager_s": artifact.startup_s - eager.startup_s,
            "steady_artifact_over_jit": warm and sum(artifact.steady_s) / sum(warm.steady_s),
            "steady_artifact_over_eager": sum(artifact.steady_s) / sum(eager.steady_s),
            "max_abs_error": artifact.against_eager["max_abs"],
            "relative_l2_error": artifact.against_eager["relative_l2"],
        }
        return {name: value for name, value in found.items() if value is not None}

    def seed_rows(self) -> list[tuple[str, str]]:
        """The rows of nexfort's tables. Warm-up is the time to the end of the first image, setup and compilation included."""
        eager, artifact = self.accounts[Way.EAGER], self.accounts[Way.ARTIFACT]
        cold, warm = self.accounts.get(Way.COLD), self.accounts.get(Way.JIT_WARM)
        regional = [(way, self.accounts.get(way)) for way in (Way.REGIONAL_COLD, Way.REGIONAL_WARM)]
        gain = artifact.iterations_per_s / eager.iterations_per_s - 1
        saved = artifact.pipeline_s / eager.pipeline_s - 1
        warm_ups = (
            ("PyTorch warm-up with run time", eager),
            ("torch.compile warm-up with compilation time", cold),
            ("torch.compile warm-up with cache time", warm),
            *((f"compile_repeated_blocks warm-up, {way.removeprefix('regional-')}", account) for way, account in regional),
            ("aot warm-up with artifact time", artifact),
        )
        return [
            ("PyTorch iteration speed", f"{eager.iterations_per_s:.3f} it/s"),
            ("aot iteration speed", f"{artifact.iterations_per_s:.3f} it/s ({gain:+.1%})"),
            ("PyTorch E2E time", f"{eager.pipeline_s:.3f} s"),
            ("aot E2E time", f"{artifact.pipeline_s:.3f} s ({saved:+.1%})"),
            ("PyTorch max memory used", f"{eager.max_memory / 2**30:.3f} GiB"),
            ("aot max memory used", f"{artifact.max_memory / 2**30:.3f} GiB"),
            *((name, f"{account.startup_s + account.pipeline_first_s:.3f} s") for name, account in warm_ups if account),
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "request": self.request.to_json(),
            "artifact": {"digest": self.digest, "size": self.size},
            "machine": self.machine,
            "calls": self.calls,
            "ways": {
                way: {**asdict(account), "startup_s": account.startup_s, "line_s": account.line_s} for way, account in self.accounts.items()
            },
            "ratios": self.ratios(),
            "seed_rows": dict(self.seed_rows()),
        }


def bench(request: Request, store: LocalStore, *, plan: Measurement, progress: Progress, environ: Mapping[str, str]) -> StartupLedger:
    """Build the artifact if `store` lacks it, then measure each way. Raises CodedError.

    Of start-up, imports and the making of weights are excluded; a warm way uses the very directory that its cold one filled.
    """
    built = build(request, store, progress=progress, environ=environ)
    with ExitStack() as stack:
        work = stack.enter_context(store.temporary())
        message = {"request": request.to_json(), "calls": str(work / "calls"), "outputs": str(work / "outputs"), "steps": plan.steps}
        with Process("calls", message, log=built.log, environ=fresh(environ, work / "capture")) as child:
            wait_for(child.events(), "done", progress)
        runs = [stack.enter_context(_Run(way, message, work, store, environ, built.log, progress)) for way in plan.ways]
        for number in range(plan.rounds):
            with stage(progress, f"steady state, round {number + 1} of {plan.rounds}"):
                for run in runs:
                    run.round()
        for run in runs:
            with stage(progress, f"{run.account.way}: the whole pipeline, {plan.steps} steps"):
                run.pipeline()
        accounts = {run.account.way: run.finish() for run in runs}
    return StartupLedger(request, str(built.digest), built.manifest.size, runs[0].calls, accounts, _machine(request))


class _Run:
    """One way's process, from its start to its last order."""

    def __init__(
        self, way: Way, message: Mapping[str, Any], work: Path, store: LocalStore, environ: Mapping[str, str], log: Path, progress: Progress
    ) -> None:
        directory = work / f"inductor-{WARMED_BY.get(way, way)}"
        inherited = {**environ, INDUCTOR_DIRECTORY: str(directory)} if directory.exists() else fresh(environ, directory)
        cache = str(store.root) if way is Way.ARTIFACT else "0"
        self._progress = progress
        self._rounds: list[list[float]] = []
        with stage(progress, f"{way}: start up in a fresh process"):
            self._process = Process(
                "measure", {**message, "way": way, "spawned": time.perf_counter()}, log=log, environ={**inherited, GRAPH_CACHE: cache}
            )
            self._events: Iterator[Event] = self._process.events()
            started, compared = self._wait("started"), self._wait("compared")
        self.calls: list[str] = started["calls"]
        self.account = Account(
            way=way,
            setup_s=started["setup_s"],
            parts_s=started["parts_s"],
            before_s=started["before_s"],
            first_call_s=started["first_call_s"],
            against_eager={name: compared[name] for name in ("max_abs", "relative_l2", "psnr")},
        )

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *error: Any) -> None:
        self._process.__exit__(*error)

    def _wait(self, name: str) -> Event:
        return wait_for(self._events, name, self._progress)

    def round(self) -> None:
        self._process.send("round")
        self._rounds.append(self._wait("round")["median_s"])

    def pipeline(self) -> None:
        """The first image, whose time belongs to the warm-up, and a second."""
        found = []
        for _ in range(2):
            self._process.send("pipeline")
            found.append(self._wait("pipeline"))
        self.account.pipeline_first_s, self.account.pipeline_s = found[0]["seconds"], found[1]["seconds"]
        self.account.iterations_per_s = found[1]["iterations_per_s"]

    def finish(self) -> Account:
        self._process.send("stop")
        done = self._wait("done")
        self.account.max_memory, self.account.inductor_imported = done["max_memory"], done["inductor_imported"]
        self.account.steady_s = [statistics.median(times) for times in zip(*self._rounds, strict=True)]
        return self.account


def _word(way: Way) -> str:
    return way.replace("-", "_")


def _machine(request: Request) -> dict[str, Any]:
    return {"target": str(Target.named(request.gpu)), "cores": os.cpu_count(), "python": platform.python_version()}
