"""Calls that nothing served become a Record that builds."""

from __future__ import annotations

import errno
import fcntl
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.errors import BadInput
from tests.cache_store.faults import refuse
from tests.pipelines import make


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")


def ask(pipe: Any, call: dict[str, Any], **other: Any) -> None:
    with torch.inference_mode():
        pipe(**{**call, "output_type": "latent", **other})


def test_calls_that_nothing_served_are_written_down_once_each_by_all_processes_together(tmp_path: Path) -> None:
    path = tmp_path / "learned.json"
    for width in (48, 64):  # the second as another process would: with a pipeline of its own
        pipe, call = make("flux")
        aot.compile_pipe(pipe, on_miss="eager", learn=path)
        ask(pipe, call)
        ask(pipe, call)
        ask(pipe, call, width=width)
        assert pickle.loads(pickle.dumps(pipe.transformer)) is not pipe.transformer
        aot.restore(pipe)
        size = path.stat().st_mtime_ns
        ask(pipe, call, width=80)  # not any more
        assert path.stat().st_mtime_ns == size
    record = aot.Record.load(path)
    assert set(record.modules) == {"transformer"}
    assert [call.signature.specs[0].shape for call in record.calls] == [(1, 96, 16), (1, 128, 16)]
    planned = aot.plan(path, gpu="cpu")
    assert {size for size in (96, 128) if any(f"[1,{size},32]" in graph for graph in planned.graphs)} == {96, 128}
    assert not list(tmp_path.glob(".*.part"))


def test_a_file_that_is_not_to_be_written_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    pipe, call = make("flux")
    other = tmp_path / "other.json"
    other.write_text("{}")
    for path, said in ((other, "no Record"), (tmp_path / "nowhere" / "learned.json", "there is no folder")):
        with pytest.raises(BadInput, match=said):
            aot.compile_pipe(pipe, on_miss="eager", learn=path)
    mine = tmp_path / "mine.json"
    aot.compile_pipe(pipe, on_miss="eager", learn=mine)
    ask(pipe, call)
    with pytest.raises(BadInput, match="of another pipeline"):
        aot.compile_pipe(make("sd3")[0], on_miss="eager", learn=mine)
    assert aot.Record.load(mine).calls
    aot.restore(pipe)


def test_a_disk_without_locks_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that write at once would leave a file that is neither's."""
    pipe, call = make("flux")
    aot.compile_pipe(pipe, on_miss="eager", learn=tmp_path / "learned.json")
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with caplog.at_level(logging.WARNING, logger="aot"):
        ask(pipe, call)
    assert "could not be learned: the disk of" in caplog.text
    assert not (tmp_path / "learned.json").exists()
    aot.restore(pipe)


def test_a_disk_that_is_full_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    pipe, call = make("flux")
    aot.compile_pipe(pipe, on_miss="eager", learn=folder / "learned.json")
    folder.rmdir()
    with caplog.at_level(logging.WARNING, logger="aot"):
        ask(pipe, call)
    assert "could not be learned" in caplog.text
    aot.restore(pipe)
