"""`aot run -- program`: the program is unchanged, its pipelines are served, and what was used is proved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aot.cache_store.local import LocalStore
from aot.errors import BadInput
from aot.verbs.run import Proof, Used, run_program

ROOT = Path(__file__).parents[2]
SERVE = """
import multiprocessing, sys
sys.path.insert(0, {root!r})


PIPES = []  # of a process, and of those that are forked from it


def serve(shapes):
    from aot.request.shape import Shape
    from tests.pixart import image, make_pipe

    PIPES.append(PIPES[0] if PIPES else make_pipe())
    pipe = PIPES[0]
    for shape in shapes:
        print("%.5f" % image(pipe, Shape.parse(shape)).mean(), flush=True)


if __name__ == "__main__":
    how = {how!r}
    worker = multiprocessing.get_context(how.split()[0]).Process(target=serve, args=(["64x64", "64x96"],))
    if how == "fork afterwards":
        serve({sizes!r})
        worker.start()
    else:
        worker.start()
        serve({sizes!r})
    worker.join()
"""


def _script(tmp_path: Path, *sizes: str, how: str = "spawn") -> list[str]:
    script = tmp_path / "serve.py"
    script.write_text(SERVE.format(root=str(ROOT), sizes=sizes, how=how))
    return [sys.executable, str(script)]


@pytest.mark.parametrize("how", ["spawn", "fork", "fork afterwards"])
def test_all_processes_of_a_program_are_served_and_what_was_used_is_one_table(
    cached: LocalStore, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that were there before a fork are not there after it, and eager hangs too
    command = _script(tmp_path, "64x64", how=how)
    plain = sorted(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    proof = run_program(command, store="1", options={})
    assert sorted(capfd.readouterr().out.split()) == plain, "it computes what it did"
    ((ref, _),) = cached.refs()
    assert (proof.status, proof.processes, proof.calls, proof.compiled, proof.notes) == (0, 2, 3, 0, ())
    assert [(one.component, one.artifacts, one.hits, one.misses, one.why) for one in proof.used] == [
        ("transformer", (f"{ref.name}@{ref.key.short}",), 9, 0, ""),
        ("vae.decoder", (f"{ref.name}@{ref.key.short}",), 3, 0, ""),
    ]
    assert all(0 < one.seconds < 60 for one in proof.used)
    assert proof.lacking() == ""


def test_strict_fails_where_a_call_was_not_served_and_says_which(cached: LocalStore, tmp_path: Path) -> None:
    def aot(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "aot.cli.app", "run", *words], capture_output=True, text=True, check=False)

    beyond = _script(tmp_path, "80x64")
    told = aot("--strict", "--", *beyond)
    assert told.returncode == 10
    assert "AOT-E501 not everything was served: PixArtAlphaPipeline transformer: " in told.stderr
    assert "built for" in told.stderr
    lenient = aot("--json", "--", *beyond)
    assert lenient.returncode == 0
    said = json.loads(lenient.stdout[lenient.stdout.index("{") :])
    assert {one["component"]: (one["hits"] > 0, one["misses"] > 0) for one in said["used"]} == {
        "transformer": (True, True),
        "vae.decoder": (True, True),
    }
    isolated = aot("--strict", "--", sys.executable, "-I", "-c", "print(1)")
    assert (isolated.returncode, "ignores PYTHONPATH" in isolated.stderr) == (10, True)
    assert aot("--strict", "--", sys.executable, "-c", "raise SystemExit(7)").returncode == 7


def test_a_program_that_compiles_by_itself_is_left_to_it(cached: LocalStore, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import torch\n"
        "from tests.conftest import SHAPES\n"
        "from tests.pixart import image, make_pipe\n"
        "pipe = make_pipe()\n"
        "pipe.transformer.compile(backend='eager')\n"
        "image(pipe, SHAPES[0])\n"
    )
    proof = run_program([sys.executable, str(script)], store="1", options={})
    assert proof.status == 0
    assert "PixArtAlphaPipeline: the program compiles transformer itself, which is left to it." in proof.notes
    assert proof.lacking() == proof.notes[0]
    with pytest.raises(BadInput, match="cannot be started"):
        run_program([str(tmp_path / "nothing")], store="1", options={})


def _used(**changes: Any) -> Used:
    return Used(
        **{"pipeline": "P", "component": "unet", "artifacts": ("a@1",), "hits": 1, "misses": 0, "why": "", "seconds": 0.1, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({}, ""),
        ({"processes": 0, "used": ()}, "no process called a pipeline"),
        ({"notes": ("P: it failed",)}, "P: it failed"),
        ({"compiled": 2}, "torch.compile made 2 graphs"),
        ({"used": (_used(), _used(hits=0, why="no artifact"))}, "P unet: no artifact"),
        ({"used": (_used(hits=0),)}, "no call was served"),
    ],
)
def test_a_proof_names_the_first_thing_that_it_lacks(changes: dict[str, Any], lacking: str) -> None:
    proof = Proof(**{"status": 0, "processes": 1, "calls": 1, "compiled": 0, "used": (_used(),), "notes": (), **changes})
    assert proof.lacking().startswith(lacking)
    assert bool(proof.lacking()) == bool(lacking)
