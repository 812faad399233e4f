"""Where artifacts are served: hosts without what building needs, many processes at once, processes that a snapshot is taken of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.cache_store.local import LocalStore
from aot.cache_store.signing import SigningKey, machine_key
from aot.cache_store.trust import trust_keys
from tests.pixart import denoise, make_pipe

SERVES = """
import json, sys
COMPILER = "torch._inductor.codegen", "torch._inductor.compile_fx"
sys.modules["triton"] = None  # importing it raises
import aot
from tests.pixart import denoise, make_pipe
expected, before = denoise(make_pipe()), set(sys.modules)  # diffusers itself imports more of torch in one release than in another
pipe = aot.compile_pipe(make_pipe(), on_miss="error")
error = float((denoise(pipe) - expected).norm() / expected.norm())
(ledger,) = aot.stats()
print(json.dumps({"error": error, "hits": sum(ledger["hits"].values()), "misses": ledger["misses"], "ready": bool(aot.ready(pipe)),
    "compiler": sorted(name for name in set(sys.modules) - before if name.startswith(COMPILER))}))
"""


def test_a_bare_host_serves(store: LocalStore, tmp_path: Path) -> None:
    """No compiler on the path, no triton, no home, nowhere for temporary files."""
    environ = {"AOT_HOME": str(store.root), "NEXFORT_GRAPH_CACHE": "1", "PATH": "/nowhere", "TMPDIR": "/nowhere"}
    environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-c", SERVES], env=environ, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found.pop("error") <= 1e-5
    assert found == {"hits": 1, "misses": {}, "ready": True, "compiler": []}


def _forked(pipe: Any, expected: torch.Tensor) -> int:
    """In a child: load, serve, compare. Its exit status."""
    torch.set_num_threads(1)
    aot.compile_pipe(pipe, on_miss="error")
    served = denoise(pipe)
    return int(not (served - expected).norm() / expected.norm() <= 1e-5 or bool(aot.stats()[-1]["misses"]))


def test_64_processes_of_one_host_load_and_serve_at_once(cached: LocalStore) -> None:
    pipe, threads = make_pipe(), torch.get_num_threads()
    torch.set_num_threads(1)  # or the children would wait for threads that are their parent's
    try:
        expected = denoise(pipe)
        children = []
        for _ in range(64):
            if not (pid := os.fork()):
                status = 2
                try:
                    status = _forked(pipe, expected)
                finally:
                    os._exit(status)
            children.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 64
    finally:
        torch.set_num_threads(threads)
    loading = cached.root / "loading"
    assert not loading.exists() or not list(loading.iterdir())
    assert not list(cached.root.glob("tmp/*"))


def _held(temporary: Path) -> dict[str, Any]:
    """What a snapshot of this process would have to hold or bring back: threads, open files, mapped files, temporary files."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # not that of this very look
    descriptors = [str(link.readlink()) for link in links]
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": sorted(found for found in descriptors if not found.startswith("/proc/")),
        "mapped": sorted(mapped),
        "temporary": sorted(map(str, temporary.rglob("*"))),
    }


def test_after_ready_nothing_is_opened_mapped_or_begun(cached: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a snapshot may be taken then, of a process that has not served yet."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    denoise(make_pipe())  # what eager itself begins: threads to compute with
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    assert aot.ready(pipe)
    before = _held(temporary)
    for _ in range(100):
        denoise(pipe)
    assert _held(temporary) == before
    assert sum(aot.stats()[-1]["hits"].values()) == 100
    aot.restore(pipe)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_serves_from_a_store_that_it_may_only_read(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's layer: made by root, read by whoever the process is, with no folder of its own to write to."""
    home, key = tmp_path / "image", machine_key(store.root)
    shutil.copytree(store.root, home)
    trust_keys(home, [str(SigningKey(key).public)])
    for path in (*tmp_path.parents, tmp_path, home, *home.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    for secret in (machine_key(home).parent, machine_key(home)):
        secret.chmod(0o700 if secret.is_dir() else 0o600)
    monkeypatch.setenv("AOT_HOME", str(home))
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    pipe, threads = make_pipe(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = denoise(pipe)
        first = aot.compile_pipe(make_pipe(), on_miss="error")
        denoise(first)  # all that is imported is: this interpreter may be root's alone
        aot.restore(first)
        before = sorted(home.rglob("*"))
        if not (pid := os.fork()):
            status = 2
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                status = _forked(pipe, expected)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert sorted(home.rglob("*")) == before
    finally:
        torch.set_num_threads(threads)


def _model(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.transformer._hf_hook.execution_device = torch.device("cpu")  # not "cpu:0": what is there would be copied to the same place


def _group(pipe: Any, kind: str, **given: Any) -> None:
    pipe.transformer.enable_group_offload(torch.device("cpu"), torch.device("cpu"), kind, **given)


OFFLOADS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "model": (_model, ""),
    "group, leaves": (lambda pipe: _group(pipe, "leaf_level"), "_diffusers_hook"),
    "group, blocks": (lambda pipe: _group(pipe, "block_level", num_blocks_per_group=1), "_diffusers_hook"),
    "layerwise casting": (
        lambda pipe: pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32),
        "_diffusers_hook",
    ),
}


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("what", OFFLOADS)
def test_offloading_is_served_or_a_miss_that_names_it(what: str, order: str) -> None:
    offload, named = OFFLOADS[what]
    pipe, eager = make_pipe(), make_pipe()
    offload(eager)
    if order == "before":
        offload(pipe)
    aot.compile_pipe(pipe, on_miss="eager")
    if order == "after":
        offload(pipe)
    assert (denoise(pipe) - (expected := denoise(eager))).norm() / expected.norm() <= 1e-5
    ledger = aot.stats()[-1]
    assert bool(ledger["misses"]) is bool(named)
    assert all("transformer" in miss and named in miss for miss in ledger["misses"])
    aot.restore(pipe)
    assert torch.equal(denoise(pipe), expected)
