"""On Hugging Face Jobs: one job a cell, in an image that has `aot`, on the hardware that its GPU or its size asks for.

A job pushes what it made into a repository; its row is the last line of its log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from huggingface_hub import HfApi
from huggingface_hub.utils import get_token

from aot.cache_store.errors import StoreError
from aot.cache_store.hub_errors import hub_errors
from aot.cache_store.signing import SigningKey
from aot.environment import SIGNING_KEY, SIGNING_PEM
from aot.errors import BadInput
from aot.fleet.matrix import Cell
from aot.fleet.work import ROW, Row, Task

HOURS = 2  # a job is ended after so long
_POLL = 10.0  # s
_UNANSWERED = 30  # times in a row: five minutes
_OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
_GIB = 2**30
# the hardware of Jobs for builds that need no GPU, smallest first: CPUs, bytes of memory (huggingface.co/docs/hub/jobs-pricing, 2026)
_CPUS = (("cpu-basic", 2, 16 * _GIB), ("cpu-upgrade", 8, 32 * _GIB), ("cpu-performance", 32, 256 * _GIB))
# and with one of our GPUs; the device's full name is looked at there
_GPUS = {
    "t4": "t4-small",
    "l4": "l4x1",
    "l40s": "l40sx1",
    "a100-sxm4-80gb": "a100-large",
    "h200": "h200",
    "rtx-pro-6000-server": "rtx-pro-6000",
}


@dataclass(frozen=True, slots=True)
class OnJobs:
    """`image`: a Docker image, or a Space, with `aot` and all that builds need. `namespace`: who pays; by default the token's owner.
    `signing`: the file of the key that signs, which travels as a secret: a job's own is gone with it, and nobody's to trust. At most
    `at_once` jobs run at a time."""

    image: str
    store: str
    namespace: str = ""
    signing: Path | None = None
    at_once: int = 8
    api: HfApi = field(default_factory=HfApi)
    poll: float = _POLL
    away: ClassVar[bool] = True

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises BadInput without an image or a key, for a store or a path that a job cannot reach, and for a cell that no hardware of
        Jobs can build; Malformed, RootRefused or Unreachable for a key that cannot be read."""
        if not self.image:
            raise BadInput("--on hf-jobs needs --image, a Docker image with aot in it.", remedy="--image me/aot:latest")
        if not self.store.startswith("hf://"):
            said = self.store or "this machine's own"
            raise BadInput(f"--on hf-jobs: a job reaches repositories of the Hub, not the store {said}.", remedy="--store hf://ME/REPO")
        if not self.signing:
            raise BadInput(
                f"--on hf-jobs: a job's own key is gone with it, and {SIGNING_KEY} names no other to sign with.",
                remedy=f"openssl genpkey -algorithm ed25519 -out key.pem; export {SIGNING_KEY}=key.pem",
            )
        SigningKey(self.signing)
        for cell in cells:
            flavour(cell)
            if paths := cell.paths():
                raise BadInput(
                    f"--on hf-jobs: {paths[0]} is of this machine, and a job does not have it.",
                    remedy="put it into a repository of the Hub, and name that.",
                )

    def run(self, tasks: Sequence[tuple[Cell, Task]], begun: Callable[[str], None]) -> Iterator[Row]:
        if not tasks:
            return
        waiting, running = list(tasks), dict[str, _Job]()
        with hub_errors("Hugging Face Jobs"):
            namespace = self.namespace or self.api.whoami()["name"]
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    cell, task = waiting.pop(0)
                    try:
                        with hub_errors("Hugging Face Jobs"):
                            job = self._begin(cell, task, namespace)
                    except StoreError as error:  # a cell that fails is a row
                        yield Row(task.name, status=1, said=f"the job was not taken: {error.message}")
                    else:
                        running[job] = _Job(self.api, namespace, job, task)
                        begun(task.name)
                for name, one in list(running.items()):
                    if (row := one.row()) is not None:
                        del running[name]
                        yield row
                if running:
                    time.sleep(self.poll)
        finally:
            for job in running:
                with suppress(StoreError), hub_errors("Hugging Face Jobs"):
                    self.api.cancel_job(job_id=job, namespace=namespace)

    def _begin(self, cell: Cell, task: Task, namespace: str) -> str:
        secrets = {SIGNING_PEM: self.signing.read_text()} if self.signing else {}
        if token := self.api.token or get_token():
            secrets["HF_TOKEN"] = str(token)
        job = self.api.run_job(
            image=self.image,
            command=["python", "-m", "aot.fleet.work", json.dumps(asdict(task))],
            secrets=secrets,
            flavor=flavour(cell),
            timeout=f"{HOURS}h",
            labels={"aot": "matrix"},
            namespace=namespace,
        )
        return job.id


@dataclass(slots=True)
class _Job:
    """One that was begun. The Hub may be out of reach for a while: the job goes on without it."""

    api: HfApi
    namespace: str
    id: str
    task: Task
    unanswered: int = 0

    def row(self) -> Row | None:
        """The row of a job that is over, which says why where it wrote none; None while it runs."""
        try:
            with hub_errors("Hugging Face Jobs"):
                status = self.api.inspect_job(job_id=self.id, namespace=self.namespace).status
                if status.stage not in _OVER:
                    self.unanswered = 0
                    return None
                lines = list(self.api.fetch_job_logs(job_id=self.id, namespace=self.namespace))
        except StoreError as error:
            self.unanswered += 1
            said = f"job {self.id} runs on, and the Hub said {self.unanswered} times nothing of it: {error.message}"
            return Row(self.task.name, status=1, said=said, host=self.id) if self.unanswered >= _UNANSWERED else None
        for line in reversed(lines):
            if line.startswith(ROW):
                with suppress(ValueError, TypeError):  # a log that was cut short
                    return replace(Row.from_json(json.loads(line.removeprefix(ROW))), name=self.task.name)
        said = f"job {self.id} ended as {status.stage}{f': {status.message}' if status.message else ''}, and wrote no row"
        return Row(self.task.name, status=1, said=said, log="\n".join(lines)[-4000:], host=self.id)


def flavour(cell: Cell) -> str:
    """The hardware of Jobs for a cell. Raises BadInput where there is none."""
    if cell.on_gpu:
        if cell.gpu not in _GPUS:
            raise BadInput(
                f"{cell}: it needs the GPU itself, and Jobs have none: {', '.join(_GPUS)}.",
                remedy="build without the GPU: untuned = true.",
            )
        return _GPUS[cell.gpu]
    for name, cpus, memory in _CPUS:
        if cell.cpus <= cpus and cell.memory <= memory:
            return name
    raise BadInput(f"{cell}: no hardware of Jobs has {cell.cpus} CPUs and {cell.memory >> 30} GiB.", remedy="ask for less: cpus, memory.")
