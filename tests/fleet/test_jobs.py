"""Cells built as jobs of the Hub, each a process here."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from aot.cache_store.hub import HubStore
from aot.errors import BadInput
from aot.fleet.drive import task_of
from aot.fleet.on_jobs import OnJobs, flavour
from tests.cache_store.hub_server import Hub
from tests.fleet.test_engines import REFUSED, THERE, machine

__all__ = ["machine"]
STORE = "hf://acme/artifacts"


@pytest.fixture
def hub(machine: Path, tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.create("acme/artifacts")
        path = os.pathsep.join(filter(None, sys.path))
        hub.jobs.environ = {"AOT_HOME": str(machine), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": path}
        yield hub


def _engine(hub: Hub, **more: str) -> OnJobs:
    given = {"image": "acme/aot:latest", "store": STORE, "namespace": "owner", **more}
    return OnJobs(**given, api=HfApi(endpoint=hub.endpoint, token=hub.token), poll=0.2)


def test_each_cell_is_a_job_that_pushes_what_it_made(hub: Hub) -> None:
    engine, begun = _engine(hub), list[str]()
    engine.check([THERE])
    rows = {row.status: row for row in engine.run([(cell, task_of(cell, STORE)) for cell in (THERE, REFUSED)], begun.append)}
    assert begun == [str(THERE), str(REFUSED)]
    assert {*rows} == {0, 2}
    assert "multiple of 16" in rows[2].said
    (entry,) = HubStore("acme/artifacts", api=HfApi(endpoint=hub.endpoint, token=hub.token)).entries()
    assert str(entry.digest) == rows[0].digest
    for job in hub.jobs.all.values():
        assert (job.spec["dockerImage"], job.spec["flavor"], job.spec["timeoutSeconds"]) == ("acme/aot:latest", "cpu-basic", 7200)
        assert job.spec["secrets"] == {"HF_TOKEN": hub.token}
        assert hub.token not in str(job.spec["environment"])


def test_a_job_that_writes_no_row_is_a_cell_that_failed(hub: Hub) -> None:
    hub.jobs.environ["PYTHONPATH"] = "/nowhere"
    hub.jobs.environ["PYTHONSAFEPATH"] = "1"
    hub.jobs.environ["PYTHONHOME"] = "/nowhere"
    (row,) = _engine(hub).run([(THERE, task_of(THERE, STORE))], lambda _: None)
    assert row.status == 1
    assert "ended as ERROR: the process ended with an error, and wrote no row" in row.said


def test_who_may_not_run_jobs_is_told_in_the_row(hub: Hub) -> None:
    engine = OnJobs("acme/aot", STORE, "owner", api=HfApi(endpoint=hub.endpoint, token=hub.read_token), poll=0.2)
    (row,) = engine.run([(THERE, task_of(THERE, STORE))], lambda _: None)
    assert (row.status, "the job was not taken" in row.said) == (1, True)
    assert not hub.jobs.all


def test_jobs_are_cancelled_when_their_driver_is_interrupted(hub: Hub) -> None:
    rows = _engine(hub).run([(replace(THERE, sizes=("128x128",)), task_of(replace(THERE, sizes=("128x128",)), STORE))], lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        next(_interrupted(rows))
    (job,) = hub.jobs.all.values()
    assert job.stage == "CANCELED"
    assert job.process is not None
    assert job.process.wait(10) != 0


def _interrupted(rows: Iterator[object]) -> Iterator[object]:
    """What Ctrl-C does while jobs are waited for."""
    before = time.sleep

    def interrupt(_: float) -> None:
        time.sleep = before
        raise KeyboardInterrupt

    time.sleep = interrupt
    try:
        yield from rows
    finally:
        time.sleep = before


@pytest.mark.parametrize(
    ("cell", "engine", "words"),
    [
        (THERE, {"image": ""}, "--image"),
        (THERE, {"store": "/srv/artifacts"}, "reaches no folder"),
        (replace(THERE, gpu="rtx-4090", mode="max-autotune"), {}, "Jobs have none"),
        (replace(THERE, cpus=64), {}, "no hardware of Jobs has 64 CPUs"),
    ],
)
def test_what_no_job_could_do_is_refused_before_anything_is_begun(cell: object, engine: dict[str, str], words: str) -> None:
    given = {"image": "acme/aot", "store": STORE, **engine}
    with pytest.raises(BadInput) as raised:
        OnJobs(**given).check([cell])  # type: ignore[list-item]
    assert words in raised.value.message


def test_the_hardware_is_that_of_the_gpu_or_the_smallest_that_has_room() -> None:
    assert flavour(replace(THERE, gpu="h200", mode="max-autotune")) == "h200"
    assert flavour(replace(THERE, gpu="h200")) == "cpu-basic"
    assert flavour(replace(THERE, cpus=4)) == "cpu-upgrade"
