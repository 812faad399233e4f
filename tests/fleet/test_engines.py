"""Cells built here and on a Ray cluster: what fails, what is lost, and what is built again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from aot.cache_store.filesystem import FilesystemStore
from aot.cache_store.local import LocalStore
from aot.errors import BadInput
from aot.fleet.drive import drive, journal, task_of
from aot.fleet.engine import Here
from aot.fleet.keys import Known
from aot.fleet.matrix import Cell
from aot.fleet.on_ray import OnRay, selector
from aot.fleet.state import State
from aot.fleet.work import Task, WrongDevice, sentence, work

MEMORY = 1 << 28
# what the session's artifact was built from: it is there, and a cell is a build that finds it
THERE = Cell("pixart-alpha", "cpu", sizes=("64x64", "64x96"), options=("--variant", "tiny"), memory=MEMORY)
REFUSED = replace(THERE, sizes=("33x33",))


@pytest.fixture
def machine(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has the session's artifact."""
    shutil.copytree(store.root, tmp_path / "machine")
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "machine"))
    return tmp_path / "machine"


def _to_build(*cells: Cell) -> list[State]:
    return [State(cell, Known(None)) for cell in cells]


def _matrix(folder: Path, *sizes: Any) -> Path:
    file = folder / "m.toml"
    store = folder / "shared"
    store.mkdir()
    file.write_text(f"""
        gpus = ["cpu"]
        store = "{store}"
        [[model]]
        what = "pixart-alpha"
        variant = "tiny"
        shapes = {json.dumps(sizes)}
    """)
    return file


def _aot(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aot.cli.app", "matrix", *words], capture_output=True, text=True)


def test_a_matrix_is_planned_built_into_a_shared_store_and_not_built_again(machine: Path, tmp_path: Path) -> None:
    file = _matrix(tmp_path, ["64x64", "64x96"], "33x33")
    planned = json.loads(_aot("plan", str(file), "--json").stdout)["cells"]
    assert [cell["present"] for cell in planned] == [None, None]
    assert "multiple of 16" in planned[1]["why"]
    built = _aot("build", str(file), "--json")
    assert built.returncode == 13, built.stderr
    found = json.loads(built.stdout)
    done, failed = sorted(found["rows"], key=lambda row: row["status"])
    assert (done["digest"], done["fresh"], failed["status"]) == (str(next(LocalStore(machine).entries()).digest), False, 2)
    assert "multiple of 16" in failed["said"]
    assert "1 built, 1 failed" in built.stderr
    assert [str(entry.digest) for entry in FilesystemStore(str(tmp_path / "shared")).entries()] == [done["digest"]]
    assert [row["name"] for row in journal(machine)] == [row["name"] for row in found["rows"]]
    again = _aot("build", str(file), "--shard", "1/2", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"present": 1, "rows": []})


def test_a_machine_with_another_gpu_is_no_place_for_a_tuned_cell() -> None:
    task = task_of(replace(THERE, gpu="h200", mode="max-autotune"), "")
    assert task.device == "NVIDIA H200"
    with pytest.raises(WrongDevice, match="needs a GPU that nobody has"):
        work(replace(task, device="a GPU that nobody has"))
    (row,) = drive(_to_build(replace(THERE, gpu="b200", mode="max-autotune")), Here(), store="", root=Path("/tmp")).rows
    assert (row.status, "needs NVIDIA B200" in row.said) == (3, True)


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("line\nerror: AOT-E101 no.\n  fix: do.\n", "AOT-E101 no. fix: do."),
        ("Traceback\nValueError: x\n", "ValueError: x"),
        ("", "it ended without a word"),
    ],
)
def test_the_sentence_of_a_command_is_our_own_error_or_its_last_line(stderr: str, said: str) -> None:
    assert sentence(stderr) == said


def test_what_runs_elsewhere_sees_no_gpu_without_need_and_is_told_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flux.json").touch()
    cell = Cell("flux.json", "h200")
    assert task_of(cell, "").environ == {}
    away = task_of(cell, "", away=True)
    assert (away.environ, away.arguments[0]) == ({"CUDA_VISIBLE_DEVICES": ""}, str(tmp_path / "flux.json"))
    assert task_of(replace(cell, mode="max-autotune"), "", away=True).environ == {}


def test_as_many_cells_run_here_as_have_room_and_one_always_does() -> None:
    here, wide = Here(), replace(THERE, cpus=64)
    assert here._has_room(wide, [], 2)
    assert here._has_room(THERE, [THERE], 2)
    assert not here._has_room(THERE, [THERE, THERE], 2)
    assert not here._has_room(wide, [THERE], 2)
    assert Here(jobs=3)._has_room(wide, [wide, wide], 2)


@pytest.mark.parametrize(("how", "status", "words"), [(signal.SIGINT, 130, "interrupted: what is finished"), (signal.SIGKILL, -9, "")])
def test_a_driver_that_is_ended_leaves_nothing_running_and_loses_nothing_that_is_finished(
    how: signal.Signals, status: int, words: str, machine: Path, tmp_path: Path
) -> None:
    size = f"128x{128 + 16 * how}"
    file = _matrix(tmp_path, "33x33", size)
    child = subprocess.Popen(  # the signal goes to the driver alone, as a scheduler's does
        [sys.executable, "-m", "aot.cli.app", "matrix", "build", str(file), "--jobs", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - a suite in the background ignores it
    )
    assert child.stderr is not None
    for line in child.stderr:
        if "FAILED" in line:
            break
    time.sleep(3)  # the second cell's build is under way
    child.send_signal(how)
    assert words in child.stderr.read()
    assert child.wait(60) == status
    assert [row["status"] for row in journal(machine)] == [2]
    assert not _running(size)


def _running(word: str) -> bool:
    for _ in range(50):
        found = subprocess.run(["pgrep", "-f", f"aot.cli.app build .*{word}"], capture_output=True, text=True).stdout.split()
        if not found:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def cluster(machine: Path) -> Iterator[Cluster]:
    """Nodes of that one machine: what is in its store is known to all of them. The head has no processor."""
    assert machine
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "memory": 1, "include_dashboard": False, "object_store_memory": 80 << 20},
        )
        yield found
        ray.shutdown()
        found.shutdown()


def _node(cluster: Cluster, **more: Any) -> Any:
    return cluster.add_node(**{"num_cpus": 1, "memory": 4 << 30, "object_store_memory": 80 << 20, **more})


def _on(cluster: Cluster) -> OnRay:
    return OnRay(cluster.address)


def test_a_cell_for_a_gpu_that_no_node_has_is_refused_by_name_before_anything_is_begun(cluster: Cluster) -> None:
    _node(cluster, num_gpus=1, labels={"ray.io/accelerator-type": "H200"})
    cluster.wait_for_nodes()
    tuned = replace(THERE, mode="max-autotune")
    engine = _on(cluster)
    engine.check([THERE, replace(tuned, gpu="h200")])
    with pytest.raises(BadInput, match=r"rtx-4090.*no node of the cluster has the label ray.io/accelerator-type=GeForce-RTX-4090"):
        engine.check([replace(tuned, gpu="rtx-4090")])
    with pytest.raises(BadInput, match="no node of the cluster has 64 CPUs"):
        engine.check([replace(THERE, cpus=64)])
    _node(cluster, num_cpus=8, labels={"ray.io/accelerator-type": "A100"})
    cluster.wait_for_nodes()
    engine.check([replace(THERE, cpus=8)])
    for wide in (replace(tuned, gpu="h200", cpus=8), replace(tuned, gpu="a100-sxm4-80gb")):  # each has a part of it: no processors, no GPU
        with pytest.raises(BadInput, match="no node of the cluster has a GPU, "):
            engine.check([wide])
    assert selector(replace(THERE, gpu="h200")) == {}
    assert selector(replace(tuned, gpu="a100-sxm4-80gb")) == {"ray.io/accelerator-type": "A100"}


def test_a_killed_worker_and_a_removed_node_lose_no_cell(cluster: Cluster, tmp_path: Path) -> None:
    first, shared = _node(cluster), tmp_path / "shared"
    shared.mkdir()
    cluster.wait_for_nodes()
    lost = False

    def lose(_: str) -> None:
        nonlocal lost
        lost = True

    engine = _on(cluster)
    engine.check([THERE])
    rows = engine.run([(THERE, task_of(THERE, str(shared))), (REFUSED, task_of(REFUSED, str(shared)))], lose)
    found = [next(rows)]  # the one is done, or refused; the other's worker is about to begin
    _node(cluster)
    cluster.remove_node(first)
    found += list(rows)
    assert lost
    assert sorted(row.status for row in found) == [0, 2]
    assert len(list(FilesystemStore(str(shared)).entries())) == 1

    _kill_first_worker(engine, shared)


def _kill_first_worker(engine: OnRay, shared: Path) -> None:
    """The worker of a cell is killed while its build runs: it is built by another."""
    rows = engine.run([(THERE, task_of(THERE, str(shared)))], lambda _: None)
    killed = Event()
    Thread(target=_kill, args=("ray::pixart-alpha", killed), daemon=True).start()
    (row,) = rows
    assert killed.is_set()
    assert row.status == 0


def _kill(title: str, killed: Event) -> None:
    """The first process of that title, while the build that it began runs."""
    while not killed.is_set():
        time.sleep(2)
        if subprocess.run(["pkill", "-9", "-f", title], check=False).returncode == 0:
            killed.set()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--on", "slurm"), "--on 'slurm' is unknown"),
        (("--address", "auto"), "leave it out, or choose --on ray"),
        (("--on", "ray", "--jobs", "2"), "leave it out, or choose --on local or hf-jobs"),
        (("--on", "ray", "--address", "10.0.0.1:6379"), "would stay on the cluster's nodes"),
        (("--on", "hf-jobs", "--address", "auto"), "--address: not of --on hf-jobs"),
        (("--shard", "5/4"), "--shard '5/4'"),
    ],
)
def test_an_option_of_another_engine_is_refused_before_anything_is_begun(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text('gpus = ["cpu"]\n[[model]]\nwhat = "pixart-alpha"\n')
    done = _aot("build", str(file), *options)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_machine_without_ray_never_imports_it() -> None:
    program = "import sys, aot, aot.cli.matrix, aot.fleet.engine, aot.fleet.drive, aot.fleet.on_ray; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert isinstance(Task("x", ()), Task)
