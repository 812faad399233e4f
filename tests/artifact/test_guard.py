"""What stands between an artifact and the process that loads it: marks of crashes, deadlines, strictness, a failing compiler."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config

import aot
from aot.artifact.guard import Guard
from aot.artifact.ledger import Ledger
from aot.artifact.opened import open_graphs
from aot.cache_store import patience
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, TimedOut, Untrusted
from aot.cache_store.local import LocalStore
from aot.cache_store.store import read_manifest
from aot.cache_store.trust import Policy
from aot.cli.app import main
from aot.errors import Crashed, Miss
from aot.serving.jit import rescued
from tests.artifacts import admitted, guard_of
from tests.pixart import denoise, make_pipe

DIGEST = Digest.of(b"an artifact")


def in_a_process(function: Callable[..., None], *args: Any) -> int:
    """The exit code of a fork that runs it; negative for a signal."""
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


def die_within(home: Path, how: str) -> None:
    with Guard(Policy(), home).entering(DIGEST):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "crashed":
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "exited":
            os._exit(1)
        raise RuntimeError("an exception is an answer")


@pytest.mark.parametrize(("how", "crashed"), [("killed", True), ("crashed", True), ("exited", True), ("raised", False)])
def test_a_process_that_an_artifact_takes_with_it_leaves_a_mark(tmp_path: Path, how: str, crashed: bool) -> None:
    assert in_a_process(die_within, tmp_path, how) != 0
    guard = Guard(Policy(), tmp_path)
    assert guard.crashed(DIGEST) is crashed
    assert not guard.crashed(Digest.of(b"another artifact"))
    guard.forget(DIGEST)
    assert not guard.crashed(DIGEST)


def test_a_mark_of_a_process_that_is_still_there_is_no_crash(tmp_path: Path) -> None:
    guard = Guard(Policy(), tmp_path)
    with guard.entering(DIGEST):
        assert not guard.crashed(DIGEST)
        guard.forget(DIGEST)
        assert len(list((tmp_path / "loading").iterdir())) == 1
    assert list((tmp_path / "loading").iterdir()) == []


def test_a_number_that_another_process_has_by_now_is_no_life(tmp_path: Path) -> None:
    (tmp_path / "loading").mkdir()
    (tmp_path / "loading" / f"{DIGEST.hex}.{os.getpid()}.1").touch()
    assert Guard(Policy(), tmp_path).crashed(DIGEST)


def test_where_no_mark_can_be_left_loading_goes_on(tmp_path: Path) -> None:
    (tmp_path / "loading").write_text("in the way")
    with Guard(Policy(), tmp_path).entering(DIGEST):
        pass


def test_an_artifact_that_ended_a_process_is_skipped_until_it_comes_back_from_another(
    cached: LocalStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ((_, digest),) = cached.refs()
    (cached.root / "loading").mkdir(exist_ok=True)
    (cached.root / "loading" / f"{digest.hex}.{os.getpid()}.1").touch()
    expected = denoise(make_pipe())
    with caplog.at_level(logging.WARNING, "aot"):
        pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
        assert torch.equal(denoise(pipe), expected)
    assert "AOT-E503" in caplog.text
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
        open_graphs(store, admitted(store, digest), Ledger(), components=("transformer",))
    assert patience.LOAD_SECONDS == 60


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
