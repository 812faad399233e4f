"""Work in forks."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from aot.compiler.parallel import in_forks
from aot.errors import BuildFailed, Unsupported


def _pid_and(number: int) -> tuple[int, int]:
    return os.getpid(), number


def test_results_come_with_their_place_from_processes_of_their_own() -> None:
    found = dict(in_forks([partial(_pid_and, number) for number in range(5)], at_once=2))
    assert {place: number for place, (_, number) in found.items()} == {number: number for number in range(5)}
    assert os.getpid() not in {pid for pid, _ in found.values()}


def test_one_at_once_is_done_here() -> None:
    assert [pid for _, (pid, _) in in_forks([partial(_pid_and, number) for number in range(3)], at_once=1)] == [os.getpid()] * 3


def _refused() -> None:
    raise Unsupported("it cannot be done.", remedy="do another thing.")


def _broken() -> None:
    raise ValueError("a compiler's bug")


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (_refused, Unsupported, "it cannot be done"),
        (_broken, BuildFailed, "ValueError: a compiler's bug"),
        (_killed, BuildFailed, "signal 9"),
    ],
)
def test_an_error_is_raised_as_what_it_is_and_ends_the_others(work: object, error: type[Exception], words: str, tmp_path: Path) -> None:
    def slow() -> None:
        (tmp_path / "slow").write_text(str(os.getpid()))
        time.sleep(60)

    with pytest.raises(error, match=words) as caught:
        list(in_forks([slow, work], at_once=2))  # type: ignore[list-item]
    if error is Unsupported:
        assert caught.value.remedy == "do another thing."  # type: ignore[attr-defined]
    assert _gone(int((tmp_path / "slow").read_text())) if (tmp_path / "slow").exists() else True


def test_forks_die_with_the_process_that_made_them(tmp_path: Path) -> None:
    program = f"""
import os, time
from pathlib import Path
from aot.compiler.parallel import in_forks
def work(number):
    Path({str(tmp_path)!r}, str(number)).write_text(str(os.getpid()))
    time.sleep(60)
list(in_forks([lambda number=number: work(number) for number in range(2)], at_once=2))
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    forks = [int(path.read_text()) for path in tmp_path.iterdir()]
    process.kill()
    process.wait()
    assert len(forks) == 2
    assert all(map(_gone, forks))


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False
