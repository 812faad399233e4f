"""`aot record -- program`: the program is unchanged, computes as ever, and leaves a Record that can be built from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aot.errors import BadInput
from aot.request.merged import merged
from aot.request.record import Record
from aot.verbs.record import record_program

ROOT = Path(__file__).parents[2]
SERVE = """
import multiprocessing, sys
sys.path.insert(0, {root!r})


def serve(sizes):
    import torch
    from diffusers import FluxPipeline
    from tests.pipelines import make

    class Own(FluxPipeline):  # defined after diffusers was imported
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    pipe, call = make("flux")
    pipe = Own(**pipe.components)
    pipe.set_progress_bar_config(disable=True)
    for height in sizes:
        with torch.no_grad():
            print(float(pipe(**{{**call, "height": height}}, output_type="pt")[0].mean()), flush=True)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=serve, args=(sizes,)) for sizes in ((32, 64), (32,))]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
"""


def test_the_calls_of_all_processes_of_a_program_are_one_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "serve.py"
    script.write_text(SERVE.format(root=str(ROOT)))
    plain = sorted(subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True).stdout.split())
    ran = record_program([sys.executable, str(script)], tmp_path / "own.json")
    assert sorted(capfd.readouterr().out.split()) == plain, "it computes what it did"
    assert (ran.status, ran.notes, list(ran.files.values())) == (0, (), [tmp_path / "own.json"])
    found = Record.load(tmp_path / "own.json")
    assert {(call.component, call.count) for call in found.calls} == {
        ("transformer", 4),
        ("transformer", 2),
        ("vae.decoder", 2),
        ("vae.decoder", 1),
    }
    assert len(found.calls) == 4


def test_a_program_that_records_nothing_and_one_that_fails_are_told_apart(tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    command = [sys.executable, "-c", "print(1)"]
    assert (record_program(command, output).status, record_program(command, output).files) == (0, {})
    assert record_program([sys.executable, "-c", "raise SystemExit(7)"], output).status == 7
    assert not output.exists()
    with pytest.raises(BadInput, match="cannot be started"):
        record_program([str(tmp_path / "nothing")], output)
    with pytest.raises(BadInput, match="there is no folder"):
        record_program(command, tmp_path / "nowhere" / "record.json")


def test_a_sitecustomize_that_is_hidden_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.customized = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = "import sys; assert sys.customized; assert 'torch' not in sys.modules"
    assert record_program([sys.executable, "-c", program], tmp_path / "record.json").status == 0


def test_records_of_one_pipeline_are_added_up_and_of_another_are_not() -> None:
    def value(name: str, *calls: tuple[str, int]) -> dict[str, object]:
        made = [{"component": part, "signature": {}, "dtype": "float32", "count": count, "blocks": []} for part, count in calls]
        return {"name": name, "roots": {}, "versions": {}, "components": {part: [] for part, _ in calls}, "left": {}, "calls": made}

    one, other, third = value("a", ("unet", 2)), value("a", ("vae.decoder", 1), ("unet", 3)), value("b", ("unet", 1))
    first, second = merged(json.loads(json.dumps([one, other, third])))
    assert [(call["component"], call["count"]) for call in first["calls"]] == [("unet", 5), ("vae.decoder", 1)]
    assert sorted(first["components"]) == ["unet", "vae.decoder"]
    assert (second["name"], len(second["calls"])) == ("b", 1)


def test_a_program_that_is_interrupted_ends_in_its_own_time_and_has_its_record(tmp_path: Path) -> None:
    """Ctrl-C goes to the program and to us; so are servers ended."""
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from tests.pipelines import make

for name in ("flux", "flux"):  # one after another: the first is gone when the second comes
    pipe, call = make(name)
    with torch.no_grad():
        pipe(**call)
    del pipe
try:
    print("serving", flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    time.sleep(1)
    print("ended well", flush=True)
"""
    (tmp_path / "serve.py").write_text(program)
    command = [
        sys.executable,
        "-m",
        "aot.cli.app",
        "record",
        "-o",
        str(tmp_path / "own.json"),
        "--",
        sys.executable,
        str(tmp_path / "serve.py"),
    ]

    def interruptible() -> None:
        """A shell's background job, which a suite may be, ignores interrupts, and so would all that it starts."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **streams, preexec_fn=interruptible) as ran:  # noqa: PLW1509 - it calls nothing that locks
        assert ran.stdout is not None
        assert ran.stdout.readline() == "serving\n"
        os.killpg(ran.pid, signal.SIGINT)
        assert ran.stdout.readline() == "ended well\n"
        assert ran.wait() == 0
    assert {(call.component, call.count) for call in Record.load(tmp_path / "own.json").calls} == {("transformer", 4), ("vae.decoder", 2)}
