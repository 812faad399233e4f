"""What stands between an artifact and the process that loads it: marks of crashes, deadlines, strictness, a failing compiler."""

import errno
import faulthandler
import fcntl
import io
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import torch
import torch._inductor.config as inductor_config

import aot
from aot.artifact import runner
from aot.artifact.guard import Guard, Timed
from aot.artifact.ledger import Ledger
from aot.artifact.opened import open_graphs
from aot.cache_store import patience
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, TimedOut, Untrusted
from aot.cache_store.layer import materialise, verifying
from aot.cache_store.local import LocalStore
from aot.cache_store.memory import MemoryStore
from aot.cache_store.patience import Deadline
from aot.cache_store.store import read_manifest
from aot.cache_store.trust import Policy
from aot.cli.app import main
from aot.errors import Crashed, Miss
from aot.serving.jit import rescued
from tests.artifacts import admitted, guard_of, packed, small
from tests.cache_store.faults import Countdown, faulty, refuse
from tests.pixart import denoise, make_pipe

DIGEST = Digest.of(b"an artifact")


OTHER = Digest.of(b"another artifact")
FORK = multiprocessing.get_context("fork")


def in_a_process(function: Callable[..., None], *args: Any) -> int:
    """The exit code of a fork that runs it; negative for a signal."""
    child = FORK.Process(target=function, args=args)
    child.start()
    child.join(30)
    child.kill()  # one that waits for ever would be waited for at the end of the session too
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def die(number: int, process: int = 0) -> None:
    os.kill(process or os.getpid(), number)


def die_within(home: Path, how: Callable[[], None], digest: Digest = DIGEST) -> None:
    with Guard(Policy(), home).entering(digest):
        how()
        raise RuntimeError("an exception is an answer")


def marks(home: Path) -> list[str]:
    return [mark.name for mark in (home / "loading").iterdir()]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(Policy(), tmp_path)


@pytest.mark.parametrize(
    ("number", "named"),
    [
        (signal.SIGSEGV, "Segmentation fault"),
        (signal.SIGABRT, "Aborted"),
        (signal.SIGILL, "Illegal instruction"),
        (signal.SIGBUS, "Bus error"),
        (signal.SIGFPE, "Floating"),
    ],
)
def test_a_process_that_an_artifact_takes_with_it_leaves_a_mark_that_says_how(tmp_path: Path, number: int, named: str) -> None:
    store = MemoryStore()
    ref, manifest, blobs = small(tmp_path)
    digest = store.commit(ref, manifest.encode(), blobs)
    guard = Guard(Policy(pins=frozenset([digest])), tmp_path)
    assert guard.admit(store, digest).by == "pinned in the lock file"
    assert in_a_process(die_within, tmp_path, partial(die, number), digest) == -number
    assert guard.crashed(digest)
    assert not guard.crashed(OTHER)
    with pytest.raises(Crashed, match=rf"was entered \(Fatal Python error: {named}.*\); it is not entered again"):
        guard.admit(store, digest)
    guard.forget(digest)
    assert not guard.crashed(digest)
    assert marks(tmp_path) == []


@pytest.mark.parametrize("how", [partial(die, signal.SIGTERM), partial(die, signal.SIGKILL), partial(os._exit, 1)])
def test_a_process_that_is_ended_from_outside_or_by_itself_condemns_no_artifact(guard: Guard, how: Callable[[], None]) -> None:
    assert in_a_process(die_within, guard.home, how) != 0
    assert len(marks(guard.home)) == 1
    assert not guard.crashed(OTHER)
    assert len(marks(guard.home)) == 1
    assert not guard.crashed(DIGEST)
    assert marks(guard.home) == []


def test_an_exception_leaves_no_mark(guard: Guard) -> None:
    assert in_a_process(die_within, guard.home, lambda: None) == 1
    assert marks(guard.home) == []


def test_a_mark_of_a_process_that_is_still_there_is_no_crash_and_stays(guard: Guard) -> None:
    within, looked = FORK.Event(), FORK.Event()

    def stay() -> None:
        with guard.entering(DIGEST):
            within.set()
            looked.wait(60)

    child = FORK.Process(target=stay)
    child.start()
    assert within.wait(60)
    assert not guard.crashed(DIGEST)
    guard.forget(DIGEST)
    assert len(marks(guard.home)) == 1
    looked.set()
    child.join(60)
    assert child.exitcode == 0
    assert marks(guard.home) == []


def test_a_process_may_look_at_its_own_mark(guard: Guard) -> None:
    with guard.entering(DIGEST):
        assert not guard.crashed(DIGEST)
        guard.forget(DIGEST)
        assert len(marks(guard.home)) == 1
    assert marks(guard.home) == []


def test_a_mark_that_is_not_locked_yet_is_not_swept_away(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fcntl.flock

    def looked_at_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", plain)
        assert not guard.crashed(DIGEST)
        plain(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", looked_at_first)
    with guard.entering(DIGEST):
        assert fcntl.flock is plain
        assert [name.startswith(f"{DIGEST.hex}.") for name in marks(guard.home)] == [True]


def test_a_mark_of_an_older_version_says_nothing_of_the_artifact(guard: Guard) -> None:
    (guard.home / "loading").mkdir()
    (guard.home / "loading" / f"{DIGEST.hex}.{os.getpid()}.1").touch()
    assert not guard.crashed(DIGEST)
    assert marks(guard.home) == []


def test_where_no_mark_can_be_left_loading_goes_on(guard: Guard) -> None:
    (guard.home / "loading").write_text("in the way")
    with guard.entering(DIGEST):
        assert not guard.crashed(DIGEST)
    guard.forget(DIGEST)


def test_on_a_read_only_disk_loading_goes_on(guard: Guard) -> None:
    with faulty(guard.home, refuse(errno.EROFS)), guard.entering(DIGEST):
        assert not guard.crashed(DIGEST)
    assert list(guard.home.iterdir()) == []


def test_whatever_file_operation_fails_loading_goes_on(guard: Guard) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for at in range(1, 20):
        count = Countdown(at, refuse(errno.EIO))
        with faulty(guard.home, count), guard.entering(DIGEST):
            pass
        assert not guard.crashed(DIGEST)
        if count.count < at:
            break
    assert at > 4
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_where_nothing_can_be_locked_there_is_no_mark(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with guard.entering(DIGEST):
        assert marks(guard.home) == []


@pytest.mark.parametrize(("inner", "condemned"), [("has come out", DIGEST), ("is entered", OTHER)])
def test_of_nested_artifacts_the_innermost_that_is_still_entered_is_condemned(guard: Guard, inner: str, condemned: Digest) -> None:
    def crash() -> None:
        with guard.entering(DIGEST):
            with guard.entering(OTHER):
                if inner == "is entered":
                    die(signal.SIGSEGV)
            die(signal.SIGSEGV)

    assert in_a_process(crash) == -signal.SIGSEGV
    assert [digest for digest in (DIGEST, OTHER) if guard.crashed(digest)] == [condemned]
    assert len(marks(guard.home)) == 1


def test_of_two_threads_the_one_whose_turn_it_is_gets_its_artifact_condemned(guard: Guard) -> None:
    told: list[str] = []

    def first(within: threading.Event) -> None:
        with guard.entering(DIGEST):
            within.set()
            time.sleep(0.2)  # long enough for the other to come in, if nothing kept it out
            told.append("out")

    def crash() -> None:
        within = threading.Event()
        thread = threading.Thread(target=first, args=(within,))
        thread.start()
        within.wait(60)
        with guard.entering(OTHER):
            assert told == ["out"]
            thread.join()
            die(signal.SIGSEGV)

    assert in_a_process(crash) == -signal.SIGSEGV
    assert guard.crashed(OTHER)
    assert not guard.crashed(DIGEST)


@contextmanager
def entered_by_a_thread(guard: Guard) -> Iterator[None]:
    within, done = threading.Event(), threading.Event()

    def stay() -> None:
        with guard.entering(DIGEST):
            within.set()
            done.wait(60)

    thread = threading.Thread(target=stay)
    thread.start()
    assert within.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_a_child_forked_while_another_thread_is_within_can_enter_and_crash_on_its_own_account(guard: Guard) -> None:
    with entered_by_a_thread(guard):
        assert in_a_process(die_within, guard.home, partial(die, signal.SIGSEGV), OTHER) == -signal.SIGSEGV
        assert in_a_process(die, signal.SIGSEGV) == -signal.SIGSEGV
        assert guard.crashed(OTHER)
        assert not guard.crashed(DIGEST)
        assert len(marks(guard.home)) == 2
    assert len(marks(guard.home)) == 1


def test_a_child_forked_within_comes_out_and_leaves_its_parents_mark(guard: Guard) -> None:
    def fork_within() -> None:
        faulthandler.disable()
        with guard.entering(DIGEST):
            child = os.fork()
            assert faulthandler.is_enabled() == bool(child)
            if child:
                assert os.waitpid(child, 0)[1] == 0
                assert len(marks(guard.home)) == 1
        with guard.entering(OTHER):
            assert len(marks(guard.home)) == (1 if child else 2)

    assert in_a_process(fork_within) == 0
    assert marks(guard.home) == []


def test_a_child_that_outlives_its_parent_does_not_hold_its_mark(guard: Guard) -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if not parent:
        with guard.entering(DIGEST):
            orphan = os.fork()
            if not orphan:
                os.write(writing, str(os.getpid()).encode())
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
    orphan = int(os.read(reading, 20))
    die(signal.SIGKILL, parent)
    os.waitpid(parent, 0)
    assert not guard.crashed(DIGEST)
    assert marks(guard.home) == []
    die(signal.SIGKILL, orphan)


def crash_after(guard: Guard, file: Path, streams: str) -> None:
    """`streams`: what stands for `sys.stderr`, then for `sys.__stderr__`."""
    faulthandler.enable()
    stands = {"file": file.open("w"), "text": io.StringIO(), "none": None}
    sys.stderr, sys.__stderr__ = (stands[stream] for stream in streams.split())  # type: ignore[assignment, misc]
    with guard.entering(DIGEST):
        assert faulthandler.is_enabled()
    assert faulthandler.is_enabled() == ("file" in streams)
    die(signal.SIGSEGV)


@pytest.mark.parametrize("streams", ["file none", "text file", "none file", "text none"])
def test_faulthandler_writes_to_stderr_again_afterwards(guard: Guard, streams: str) -> None:
    assert in_a_process(crash_after, guard, guard.home / "stderr", streams) == -signal.SIGSEGV
    assert ("Segmentation fault" in (guard.home / "stderr").read_text()) == ("file" in streams)
    assert not guard.crashed(DIGEST)


def test_faulthandler_that_was_not_enabled_is_not_enabled_afterwards(guard: Guard) -> None:
    def enter() -> None:
        faulthandler.disable()
        with guard.entering(DIGEST), guard.entering(OTHER):
            assert faulthandler.is_enabled()
        assert not faulthandler.is_enabled()
        (guard.home / "loading").rmdir()
        (guard.home / "loading").write_text("in the way")
        with guard.entering(DIGEST):
            assert not faulthandler.is_enabled()

    assert in_a_process(enter) == 0


def test_an_artifact_that_ended_a_process_is_skipped_until_it_comes_back_from_another(
    cached: LocalStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((_, digest),) = cached.refs()
    assert in_a_process(die_within, cached.root, partial(die, signal.SIGSEGV), digest) == -signal.SIGSEGV
    expected = denoise(make_pipe())
    with caplog.at_level(logging.WARNING, "aot"):
        pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
        assert torch.equal(denoise(pipe), expected)
    assert "AOT-E503" in caplog.text
    assert "Segmentation fault" in caplog.text
    assert "aot verify" in caplog.text
    aot.restore(pipe)
    with pytest.raises(Crashed):
        aot.compile_pipe(make_pipe(), on_miss="error")
    monkeypatch.setattr("sys.argv", ["aot", "verify", digest.short, "--forget"])
    with pytest.raises(SystemExit, match="0"):
        main()
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    aot.restore(pipe)


def test_the_first_call_of_a_graph_is_made_under_a_mark_and_no_other(cached: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Digest] = []
    plain = Guard.entering

    def entering(self: Guard, digest: Digest) -> Any:
        entered.append(digest)
        return plain(self, digest)

    monkeypatch.setattr(Guard, "entering", entering)
    monkeypatch.setattr(runner, "_libraries", {})  # as in a process that has opened none
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    assert len(entered) == 1
    denoise(pipe)
    assert len(entered) == 2
    denoise(pipe)
    assert len(entered) == 2
    aot.restore(pipe)


def test_a_disk_that_is_too_slow_is_given_up_by_the_deadline(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, digest),) = store.refs()
    monkeypatch.setattr("aot.artifact.opened.LOAD_SECONDS", 0.0)
    with pytest.raises(TimedOut, match="loading artifact"):
        open_graphs(store, admitted(store, digest), Ledger(), choose=lambda *_: ("transformer",))
    assert patience.LOAD_SECONDS == 60


def test_a_file_read_at_several_places_at_once_has_its_deadline_too(tmp_path: Path) -> None:
    layer, entries, blob = packed(tmp_path, {f"{number}.so": os.urandom(1 << 20) for number in range(6)})
    deadline = Deadline(60, "this load")
    with blob.open("rb") as file:
        timed = cast(BinaryIO, Timed(file, deadline))
        with verifying(layer, timed) as verified:
            assert len(materialise(layer, files=entries, blob=timed, into=tmp_path / "out")) == 6
            verified()
        timed = cast(BinaryIO, Timed(file, Deadline(0, "this load")))
        with pytest.raises(TimedOut, match="this load"):
            materialise(layer, files=entries, blob=timed, into=tmp_path / "late")
    with pytest.raises(OSError, match="fileno"):
        Timed(io.BytesIO(), deadline).fileno()


def unsigned(store: LocalStore, digest: Digest) -> None:
    (store.root / "v1" / "signatures" / digest.hex).unlink()


def flipped(store: LocalStore, digest: Digest) -> None:
    layer = read_manifest(store, digest).layer("graph")
    assert layer
    path = store.blob_path(layer.digest)
    assert path
    path.chmod(0o600)
    path.write_bytes(b"x" + path.read_bytes()[1:])


def removed(store: LocalStore, digest: Digest) -> None:
    for ref, _ in list(store.refs()):
        store.remove(ref)


@pytest.mark.parametrize(("harm", "kind"), [(unsigned, Untrusted), (flipped, Corrupt), (removed, Miss)])
def test_strict_raises_what_is_wrong_before_the_first_request(
    cached: LocalStore, harm: Callable[[LocalStore, Digest], None], kind: type[Exception]
) -> None:
    ((_, digest),) = cached.refs()
    harm(cached, digest)
    pipe = make_pipe()
    with pytest.raises(kind):
        aot.compile_pipe(pipe, on_miss="error")
    assert torch.equal(denoise(pipe), denoise(make_pipe()))


def test_the_same_decision_is_made_each_time_it_is_loaded(cached: LocalStore) -> None:
    guard = guard_of(cached.root)
    ((_, digest),) = cached.refs()
    assert guard.admit(cached, digest).by.startswith("signed by machine-")
    unsigned(cached, digest)
    for _ in range(2):
        with pytest.raises(Untrusted, match="not signed"):
            guard_of(cached.root).admit(cached, digest)


def test_a_compiler_that_fails_costs_a_warning_and_every_later_call_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def failing(value: torch.Tensor) -> torch.Tensor:
        calls.append(value)
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler\nand much more")

    forward = rescued(lambda: failing, lambda value: value + 1)
    with caplog.at_level(logging.WARNING, "aot"):
        assert [float(forward(torch.tensor(1.0))) for _ in range(3)] == [2.0, 2.0, 2.0]
    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert "AOT-E401" in caplog.text
    assert "much more" not in caplog.text


def test_an_error_of_the_callers_own_goes_to_the_caller() -> None:
    def own(value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    def mine() -> None:
        raise ValueError("mine")

    with pytest.raises(RuntimeError, match="shapes"):
        rescued(lambda: own, own)(torch.ones(1))
    with pytest.raises(ValueError, match="mine"):
        rescued(lambda: mine, lambda: None)()


@pytest.mark.parametrize("what", ["no compiler", "a read-only cache directory"])
def test_torchs_own_compiler_failing_is_rescued(what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    broken = {"cpp.cxx": ("/nonexistent/g++",)} if what == "no compiler" else {}
    if not broken:
        (tmp_path / "cache").write_text("a file where the directory should be")
    torch._dynamo.reset()

    def plain(value: torch.Tensor) -> torch.Tensor:
        return value.sin() + what.count("o")

    value = torch.linspace(0, 1, 17)
    # torch's own patch: one by pytest leaves the entry deleted, for every later test of this process
    with inductor_config.patch(broken):
        assert torch.equal(rescued(lambda: torch.compile(plain), plain)(value), plain(value))
