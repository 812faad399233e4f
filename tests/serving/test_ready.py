"""The proof that a pipeline is served: before the first request, and in one line."""

import logging
from typing import Any

import pytest
import torch

import aot
from aot.cache_store.local import LocalStore
from aot.errors import Miss
from tests.conftest import SHAPES
from tests.pixart import denoise, image, make_pipe


def test_a_loaded_pipeline_is_ready_and_says_in_one_line_what_it_is_served_from(
    cached: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = make_pipe()
    assert str(aot.ready(pipe)) == "transformer: nothing was loaded for it; vae.decoder: nothing was loaded for it"
    with caplog.at_level(logging.INFO, "aot"):
        aot.compile_pipe(pipe, strict=True)
    ((ref, _),) = cached.refs()
    (line,) = caplog.messages
    assert line.startswith(f"transformer, vae.decoder: 4 graphs from {ref.name}@{ref.key.short}, ")
    assert line.endswith(" s; nothing will compile")
    found = aot.ready(pipe)
    assert (bool(found), str(found)) == (True, "ready: nothing will compile")
    image(pipe, SHAPES[0])
    assert aot.ready(pipe)
    (account,) = aot.stats()
    assert account["served"] == {path: [f"{ref.name}@{ref.key.short}"] for path in ("transformer", "vae.decoder")}
    assert (account["unserved"], account["compiled"]) == ({}, 0)
    pipe.transformer.norm_out.eps = 0.5
    assert str(aot.ready(pipe)) == "transformer: norm_out has eps=0.5, built for eps=1e-06"
    aot.restore(pipe)
    assert not aot.ready(pipe)


def test_what_would_be_compiled_is_an_error_before_the_first_request_where_it_is_asked_for(cached: LocalStore) -> None:
    def another() -> Any:
        pipe = make_pipe()
        pipe.transformer.norm_out.eps = 0.5
        return pipe

    with pytest.raises(Miss, match=r"transformer: no artifact for it.*eps=0\.5"):
        aot.compile_pipe(another(), strict=True)
    pipe = aot.compile_pipe(another(), on_miss="compile")
    (why,) = aot.ready(pipe).why
    assert why == "transformer: no graph was loaded for it, its first call compiles"
    (account,) = aot.stats()
    assert "eps=0.5" in account["unserved"]["transformer"]
    assert list(account["served"]) == ["vae.decoder"]
    aot.restore(pipe)
    eager = aot.compile_pipe(another(), on_miss="eager")
    assert str(aot.ready(eager)) == "transformer: nothing was loaded for it"
    aot.restore(eager)


def test_strict_without_a_store_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXFORT_GRAPH_CACHE", raising=False)
    with pytest.raises(Miss, match="NEXFORT_GRAPH_CACHE is not set"):
        aot.compile_pipe(make_pipe(), strict=True)
    assert aot.stats() == []
    module = torch.nn.Linear(2, 2)
    assert str(aot.ready(module)) == "module: nothing was loaded for it"
    assert str(aot.ready(object())) == "there is nothing in it to compile"


def test_what_the_process_compiles_since_is_counted(cached: LocalStore) -> None:
    pipe = aot.compile_pipe(make_pipe(), on_miss="error")
    with torch.no_grad():
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    denoise(pipe)
    assert aot.stats()[0]["compiled"] == 1
    aot.restore(pipe)
