"""On Hugging Face Jobs: one job a cell, in an image that has `aot`, on the hardware that its GPU or its size asks for.

A job pushes what it made into a repository; its row is the last line of its log.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_token

from aot.errors import BadInput
from aot.fleet.matrix import Cell
from aot.fleet.work import ROW, Row, Task

HOURS = 2  # a job is ended after so long
_POLL = 10.0  # s
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
    At most `at_once` jobs run at a time."""

    image: str
    store: str
    namespace: str = ""
    at_once: int = 8
    api: HfApi = field(default_factory=HfApi)
    poll: float = _POLL

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises BadInput without an image, for a store that a job cannot reach, and for a cell that no hardware of Jobs can build."""
        if not self.image:
            raise BadInput("--on hf-jobs needs --image, a Docker image with aot in it.", remedy="--image me/aot:latest")
        if "://" not in self.store:
            raise BadInput(
                f"--on hf-jobs: a job reaches no folder of this machine ({self.store or 'its own store'}).", remedy="--store hf://…"
            )
        for cell in cells:
            flavour(cell)

    def run(self, tasks: Sequence[tuple[Cell, Task]], begun: Callable[[str], None]) -> Iterator[Row]:
        waiting, running = list(tasks), dict[str, Task]()
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    cell, task = waiting.pop(0)
                    try:
                        running[self._begin(cell, task)] = task
                    except HfHubHTTPError as error:  # a cell that fails is a row
                        yield Row(task.name, status=1, said=f"the job was not taken: {error}")
                    else:
                        begun(task.name)
                for job in list(running):
                    if (row := self._row(job, running[job])) is not None:
                        del running[job]
                        yield row
                if running:
                    time.sleep(self.poll)
        finally:
            for job in running:
                self.api.cancel_job(job_id=job, namespace=self.namespace or None)

    def _begin(self, cell: Cell, task: Task) -> str:
        secrets = {"HF_TOKEN": token} if (token := self.api.token or get_token()) and self.store.startswith("hf://") else None
        command = ["python", "-m", "aot.fleet.work", json.dumps(asdict(task))]
        job = self.api.run_job(
            image=self.image,
            command=command,
            secrets=secrets,
            flavor=flavour(cell),
            timeout=f"{HOURS}h",
            labels={"aot": "matrix"},
            namespace=self.namespace or None,
        )
        return job.id

    def _row(self, job: str, task: Task) -> Row | None:
        """The row of a job that is over, which says why where it wrote none; None while it runs."""
        status = self.api.inspect_job(job_id=job, namespace=self.namespace or None).status
        if status.stage not in _OVER:
            return None
        lines = list(self.api.fetch_job_logs(job_id=job, namespace=self.namespace or None))
        told = next((line.strip() for line in reversed(lines) if line.startswith(ROW)), "")
        if told:
            found: dict[str, Any] = json.loads(told.removeprefix(ROW))
            return Row.from_json(found)
        said = f"job {job} ended as {status.stage}{f': {status.message}' if status.message else ''}, and wrote no row"
        return Row(task.name, status=1, said=said, log="\n".join(lines)[-4000:], host=job)


def flavour(cell: Cell) -> str:
    """The hardware of Jobs for a cell. Raises BadInput where there is none."""
    if cell.tuned:
        if cell.gpu not in _GPUS:
            raise BadInput(
                f"{cell}: kernels are tuned on the GPU itself, and Jobs have none: {', '.join(_GPUS)}.",
                remedy="build without the GPU: untuned = true.",
            )
        return _GPUS[cell.gpu]
    for name, cpus, memory in _CPUS:
        if cell.cpus <= cpus and cell.memory <= memory:
            return name
    raise BadInput(f"{cell}: no hardware of Jobs has {cell.cpus} CPUs and {cell.memory >> 30} GiB.", remedy="ask for less: cpus, memory.")
