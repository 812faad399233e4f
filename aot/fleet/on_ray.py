"""On Ray: one task a cell, which starts our build as a child in the environment of the cell's torch. Needs the extra `ray`.

The driver and the cluster must have one version of Ray and of Python; `aot` must be importable on every node.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from aot.cache_store.signing import SigningKey
from aot.environment import SIGNING_KEY, signing_key
from aot.errors import BadEnvironment, BadInput
from aot.fleet.matrix import Cell
from aot.fleet.work import Row, Task, WrongDevice, work
from aot.machine.sku import find_sku

RETRIES = 2  # of a cell whose worker or node was lost
_LABEL = "ray.io/accelerator-type"
_WAKE = 1.0  # s: how long the driver waits for a row before it looks at what has begun
# Ray's names of families, by what a device's full name begins with; coarser than ours, so a worker looks at the name itself
_FAMILIES = {
    "NVIDIA GB300": "GB300",
    "NVIDIA GB200": "GB200",
    "NVIDIA B300": "B300",
    "NVIDIA B200": "B200",
    "NVIDIA H200": "H200",
    "NVIDIA H100": "H100",
    "NVIDIA H20": "H20",
    "NVIDIA A100": "A100",
    "NVIDIA A10G": "A10G",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA RTX PRO 6000": "RTX-PRO-6000",
    "Tesla T4": "T4",
    "Tesla V100": "V100",
}


@dataclass(frozen=True, slots=True)
class OnRay:
    """A cluster at `address`, as Ray itself takes it (`auto`, `host:port`); by an empty one that of RAY_ADDRESS, else a new one on
    this machine."""

    address: str = ""
    away: ClassVar[bool] = True

    def check(self, cells: Sequence[Cell]) -> None:
        """Raises BadEnvironment where there is no Ray or no cluster, BadInput for a cell that no node can run: Ray would wait for one
        for ever. Malformed, RootRefused or Unreachable for a key that cannot be read."""
        if key := signing_key(os.environ):
            SigningKey(key)
        ray = self._connect()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        for cell in cells:
            wanted = selector(cell)
            fitting = [node for node in nodes if _has(node, wanted)]
            if not fitting:
                label = ", ".join(f"{name}={value}" for name, value in wanted.items())
                raise BadInput(
                    f"{cell}: it needs the GPU itself, and no node of the cluster has the label {label}.",
                    remedy="add such a node, or build without the GPU: untuned = true.",
                )
            needed = {"CPU": cell.cpus, "memory": cell.memory, "GPU": int(cell.on_gpu)}
            if not any(all(node["Resources"].get(name, 0) >= count for name, count in needed.items()) for node in fitting):
                of = f" a GPU, {' '.join(wanted.values())}," if wanted else ""
                raise BadInput(
                    f"{cell}: no node of the cluster has{of} {cell.cpus} CPUs and {cell.memory >> 20} MiB of memory.",
                    remedy="ask for less: cpus, memory (GiB) in the file.",
                )

    def run(self, tasks: Sequence[tuple[Cell, Task]], begun: Callable[[str], None]) -> Iterator[Row]:
        ray = self._connect()
        # no max_calls=1: a worker waits for a child and imports no torch, and a new one for each cell costs half a second, measured
        remote = ray.remote(_cell)
        refs = {}
        for cell, task in tasks:
            options: dict[str, Any] = {
                "num_cpus": cell.cpus,
                "memory": cell.memory,
                "max_retries": RETRIES,
                "retry_exceptions": [WrongDevice],
                "name": task.name,
            }
            if wanted := selector(cell):
                options |= {"num_gpus": 1, "label_selector": wanted}
            refs[remote.options(**options).remote(asdict(_there(task)))] = task
        try:
            for task in refs.values():
                begun(task.name)
            while refs:
                done, _ = ray.wait(list(refs), num_returns=1, timeout=_WAKE)
                for ref in done:
                    yield _row(ray, ref, refs.pop(ref))
        finally:
            for ref in refs:
                ray.cancel(ref, force=True)

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise BadEnvironment("--on ray needs Ray, which is not installed.", remedy="pip install ray.") from error
        if not ray.is_initialized():
            try:
                ray.init(address=self.address or None, log_to_driver=False, include_dashboard=False if not self.address else None)
            except Exception as error:  # whatever a cluster that is not there makes of it
                raise BadEnvironment(f"no Ray cluster at {self.address or 'this machine'}: {error}", remedy="ray start --head.") from error
        return ray


def selector(cell: Cell) -> dict[str, str]:
    """The labels of the nodes that may build a cell; none where no GPU is needed. Raises BadInput for a GPU that Ray has no name of."""
    if not cell.on_gpu:
        return {}
    name = find_sku(cell.gpu).name
    family = next((family for beginning, family in _FAMILIES.items() if name.startswith(beginning)), "")
    family = family or name.removeprefix("NVIDIA ").replace(" ", "-")  # a GeForce by its name with hyphens
    return {_LABEL: family}


def _there(task: Task) -> Task:
    """As a node is told of it. A key that is asked for to sign with is a file there too: under the same path, and nobody sends it."""
    signing = {SIGNING_KEY: str(key.absolute())} if (key := signing_key(os.environ)) else {}  # a worker runs in another folder
    return replace(task, environ={**task.environ, **signing})


def _has(node: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    labels = node.get("Labels") or {}
    return all(labels.get(name) == value for name, value in wanted.items())


def _cell(task: dict[str, Any]) -> dict[str, Any]:
    """What a worker runs. WrongDevice is Ray's to retry on another node."""
    return work(Task(**task)).to_json()


def _row(ray: Any, ref: Any, task: Task) -> Row:
    """The row of a finished task; one that says how it was lost, where Ray gave it up."""
    try:
        return Row.from_json(ray.get(ref))
    except Exception as error:  # noqa: BLE001 - of Ray's many
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        return Row(task.name, status=1, said=f"{type(error).__name__}: {lines[0][:300]}", log=str(error)[-4000:], host=os.uname().nodename)
