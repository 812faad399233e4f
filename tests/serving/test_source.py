"""Code that was changed since it was traced: a miss that names it, unless a user allows it and the model still answers the same."""

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward

import aot
from aot.artifact.certificate import compare
from aot.cache_store.local import LocalStore
from tests.pixart import denoise, make_pipe


@pytest.fixture
def release() -> Iterator[Callable[[CodeType], None]]:
    """Gives `FeedForward.forward` the code of another release."""
    plain = FeedForward.forward.__code__

    def released(code: CodeType) -> None:
        # lines that are not its own in the file, as after an upgrade
        FeedForward.forward.__code__ = code.replace(co_qualname=plain.co_qualname, co_firstlineno=1, co_filename=plain.co_filename)

    yield released
    FeedForward.forward.__code__ = plain


def _same() -> CodeType:
    code = FeedForward.forward.__code__
    return code.replace(co_consts=(*code.co_consts, "another release"))


def _other() -> CodeType:
    def forward(self: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states * 2

    return forward.__code__


@pytest.mark.parametrize("code", [_same, _other])
def test_changed_code_is_a_miss_that_names_it(
    cached: LocalStore, release: Callable[[CodeType], None], caplog: pytest.LogCaptureFixture, code: Callable[[], CodeType]
) -> None:
    release(code())
    pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
    assert "transformer: diffusers.models.attention:FeedForward.forward was changed since" in caplog.text
    assert torch.equal(denoise(pipe), denoise(make_pipe()))
    assert list(aot.stats()[0]["hits"]) == [name for name in aot.stats()[0]["hits"] if name.startswith("vae")]
    aot.restore(pipe)


def test_changed_code_that_answers_the_same_is_served_where_it_is_allowed(
    cached: LocalStore, release: Callable[[CodeType], None], caplog: pytest.LogCaptureFixture
) -> None:
    release(_same())
    pipe = aot.compile_pipe(make_pipe(), on_miss="error", allow=("other-source",))
    assert "its golden outputs were reproduced" in caplog.text
    assert compare(denoise(pipe), denoise(make_pipe())).relative_l2 <= 1e-5
    assert sum(aot.stats()[0]["hits"].values()) == 1
    aot.restore(pipe)


def test_changed_code_that_answers_otherwise_is_a_miss_even_where_it_is_allowed(
    cached: LocalStore, release: Callable[[CodeType], None], caplog: pytest.LogCaptureFixture
) -> None:
    release(_other())
    pipe = aot.compile_pipe(make_pipe(), on_miss="eager", allow=("other-source",))
    assert "FeedForward.forward was changed since" in caplog.text
    assert torch.equal(denoise(pipe), denoise(make_pipe()))
    aot.restore(pipe)


def test_what_is_patched_is_never_allowed(cached: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    plain = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, *args, **kwargs: plain(self, *args, **kwargs))
    pipe = aot.compile_pipe(make_pipe(), on_miss="eager", allow=("other-source",))
    assert "FeedForward.forward" in caplog.text
    assert all(name.startswith("vae") for name in aot.stats()[0]["hits"])
    aot.restore(pipe)
