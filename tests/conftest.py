"""One real artifact a session: PixArt-alpha tiny at two sizes, compiled once and shared by every test that loads."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aot.build import Built, build
from aot.options import Options
from aot.request import Request
from aot.shape import Shape
from cache_store.local import LocalStore

SHAPES = (Shape(64, 64), Shape(64, 96))


def request_for(**changes: Any) -> Request:
    """The session artifact's request, changed."""
    given = {"recipe": "pixart-alpha", "variant": "tiny", "shapes": SHAPES, "gpu": "cpu", "options": Options()}
    return Request(**{**given, **changes})


def quiet(_: str) -> None: ...


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Built]:
    """The artifact, in a store that no test may change."""
    store = LocalStore(tmp_path_factory.mktemp("session") / "home")
    return store, build(request_for(), store, progress=quiet, environ=os.environ)


@pytest.fixture
def store(built: tuple[LocalStore, Built], tmp_path: Path) -> LocalStore:
    """A copy of that store, for the test alone."""
    shutil.copytree(built[0].root, tmp_path / "home")
    return LocalStore(tmp_path / "home")


@pytest.fixture
def cached(store: LocalStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalStore]:
    """The copy, named by the environment as a user would."""
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    monkeypatch.setenv("AOT_HOME", str(store.root))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return store


@pytest.fixture
def make_pipe() -> Callable[..., Any]:
    """Makes the tiny pipeline with the weights of a seed."""
    from tests.pixart import make_pipe

    return make_pipe
