"""Where artifacts are served: hosts without what building needs, many processes at once, processes that a snapshot is taken of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.cache_store.local import LocalStore
from tests.pixart import denoise, make_pipe

SERVES = """
import json, sys
sys.modules["triton"] = None  # importing it raises
import aot
from tests.pixart import denoise, make_pipe
expected = denoise(make_pipe())
pipe = aot.compile_pipe(make_pipe(), on_miss="error")
error = float((denoise(pipe) - expected).norm() / expected.norm())
(ledger,) = aot.stats()
print(json.dumps({"error": error, "hits": sum(ledger["hits"].values()), "misses": ledger["misses"], "ready": bool(aot.ready(pipe)),
    "compiler": sorted(name for name in sys.modules if name.startswith(("torch._inductor.codegen", "torch._inductor.compile_fx")))}))
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
