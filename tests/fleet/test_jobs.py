"""Cells built as jobs of the Hub, each a process here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from aot.cache_store.hub import HubStore
from aot.cache_store.signing import SigningKey
from aot.errors import BadInput
from aot.fleet.drive import task_of
from aot.fleet.matrix import Cell
from aot.fleet.on_jobs import OnJobs, flavour
from aot.fleet.work import ROW
from tests.cache_store.hub_server import Does, Fault, Hub
from tests.fleet.test_engines import REFUSED, THERE, machine

__all__ = ["machine"]
STORE = "hf://acme/artifacts"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", file], check=True)
    return file


@pytest.fixture
def hub(machine: Path, tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.create("acme/artifacts")
        path = os.pathsep.join(filter(None, sys.path))
        hub.jobs.environ = {"AOT_HOME": str(machine), "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": path}
        yield hub


def _engine(hub: Hub, key: Path, **more: str) -> OnJobs:
    given = {"image": "acme/aot:latest", "store": STORE, "namespace": "owner", **more}
    return OnJobs(**given, signing=key, api=HfApi(endpoint=hub.endpoint, token=hub.token), poll=0.2)


def test_each_cell_is_a_job_that_pushes_what_it_made_signed_by_the_key_it_was_given(hub: Hub, key: Path) -> None:
    engine, begun = _engine(hub, key, namespace=""), list[str]()
    engine.check([THERE])
    rows = {row.status: row for row in engine.run([(cell, task_of(cell, STORE)) for cell in (THERE, REFUSED)], begun.append)}
    assert begun == [str(THERE), str(REFUSED)]
    assert {*rows} == {0, 2}
    assert "multiple of 16" in rows[2].said
    (entry,) = HubStore("acme/artifacts", api=HfApi(endpoint=hub.endpoint, token=hub.token)).entries()
    assert str(entry.digest) == rows[0].digest
    assert SigningKey(key).public.id in entry.signers
    assert sum(request.path.endswith("whoami-v2") and request.method == "GET" for request in hub.requests) < 5  # not at every poll
    for job in hub.jobs.all.values():
        assert (job.spec["dockerImage"], job.spec["flavor"], job.spec["timeoutSeconds"]) == ("acme/aot:latest", "cpu-basic", 7200)
        assert job.spec["secrets"] == {"HF_TOKEN": hub.token, "AOT_SIGNING_PEM": key.read_text()}
        assert hub.token not in f"{job.spec['environment']}{job.spec['command']}"
        assert "PRIVATE" not in f"{job.spec['environment']}{job.spec['command']}"


def test_a_hub_that_is_out_of_reach_for_a_while_ends_nothing(hub: Hub, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polls = Fault("GET", r"/api/jobs/owner/\w+$", Does.RESET, times=3)
    hub.faults.add(polls, Fault("GET", r"/logs", Does.UNAVAILABLE, times=2), Fault("GET", r"/api/jobs/owner/\w+$", Does.BROKEN, times=2))
    (row,) = _engine(hub, key).run([(REFUSED, task_of(REFUSED, STORE))], lambda _: None)
    assert (row.status, "multiple of 16" in row.said) == (2, True)
    monkeypatch.setattr("aot.fleet.on_jobs._UNANSWERED", 3)
    hub.faults.add(Fault("GET", r"/api/jobs/owner/\w+$", Does.UNAVAILABLE, times=-1))
    (row,) = _engine(hub, key).run([(REFUSED, task_of(REFUSED, STORE))], lambda _: None)
    assert "runs on, and the Hub said 3 times nothing of it" in row.said
    assert not [request for request in hub.requests if request.path.endswith("/cancel")]


@pytest.mark.parametrize("line", ["{", "[]", '{"nobody": 1}', '{"status": 0}'])
def test_a_row_that_cannot_be_read_is_a_cell_that_failed(line: str, hub: Hub, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [sys.executable, "-c", f"print({ROW + line!r})"]
    begin = hub.jobs.begin
    monkeypatch.setattr(hub.jobs, "begin", lambda owner, spec: begin(owner, {**spec, "command": told}))
    (row,) = _engine(hub, key).run([(THERE, task_of(THERE, STORE))], lambda _: None)
    assert (row.status, row.name) == (1, str(THERE))
    assert "ended as COMPLETED, and wrote no row" in row.said


def test_a_job_that_writes_no_row_is_a_cell_that_failed(hub: Hub, key: Path) -> None:
    hub.jobs.environ["PYTHONPATH"] = "/nowhere"
    hub.jobs.environ["PYTHONSAFEPATH"] = "1"
    hub.jobs.environ["PYTHONHOME"] = "/nowhere"
    (row,) = _engine(hub, key).run([(THERE, task_of(THERE, STORE))], lambda _: None)
    assert row.status == 1
    assert "ended as ERROR: the process ended with an error, and wrote no row" in row.said


def test_who_may_not_run_jobs_is_told_in_the_row(hub: Hub, key: Path) -> None:
    engine = OnJobs("acme/aot", STORE, "owner", key, api=HfApi(endpoint=hub.endpoint, token=hub.read_token), poll=0.2)
    (row,) = engine.run([(THERE, task_of(THERE, STORE))], lambda _: None)
    assert (row.status, "the job was not taken" in row.said) == (1, True)
    assert not hub.jobs.all


def test_jobs_are_cancelled_when_their_driver_is_interrupted(hub: Hub, key: Path) -> None:
    rows = _engine(hub, key).run([(replace(THERE, sizes=("128x128",)), task_of(replace(THERE, sizes=("128x128",)), STORE))], lambda _: None)
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
        (THERE, {"store": "/srv/artifacts"}, "not the store /srv/artifacts"),
        (THERE, {"store": "file:///srv/artifacts"}, "not the store file:///srv/artifacts"),
        (THERE, {"store": ""}, "not the store this machine's own"),
        (THERE, {"signing": None}, "AOT_SIGNING_KEY names no other"),
        (Cell(__file__, "cpu"), {}, "is of this machine, and a job does not have it"),
        (replace(THERE, options=("--weights", str(Path(__file__).parent))), {}, "is of this machine"),
        (replace(THERE, gpu="rtx-4090", mode="max-autotune"), {}, "Jobs have none"),
        (replace(THERE, cpus=64), {}, "no hardware of Jobs has 64 CPUs"),
    ],
)
def test_what_no_job_could_do_is_refused_before_anything_is_begun(cell: Cell, engine: dict[str, str], words: str, key: Path) -> None:
    given = {"image": "acme/aot", "store": STORE, "signing": key, **engine}
    with pytest.raises(BadInput) as raised:
        OnJobs(**given).check([cell])
    assert words in raised.value.message


def test_the_hardware_is_that_of_the_gpu_or_the_smallest_that_has_room() -> None:
    assert flavour(replace(THERE, gpu="h200", mode="max-autotune")) == "h200"
    assert flavour(replace(THERE, gpu="h200")) == "cpu-basic"
    assert flavour(replace(THERE, cpus=4)) == "cpu-upgrade"
