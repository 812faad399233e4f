"""Real artifacts, compiled once a session and shared by every test that loads: PixArt-alpha tiny at two sizes, and one of each recipe."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from aot.building.build import Built, build
from aot.cache_store.local import LocalStore
from aot.request.options import Options
from aot.request.request import Request
from aot.request.shape import Shape

SHAPES = (Shape(64, 64), Shape(64, 96))


def request_for(**changes: Any) -> Request:
    """The session artifact's request, changed."""
    given = {"recipe": "pixart-alpha", "variant": "tiny", "shapes": SHAPES, "gpu": "cpu", "options": Options()}
    return Request(**{**given, **changes})


def quiet(_: str) -> None: ...


# what the tests of recipes load: each once a session, whole or regional by turns. `scripts/matrix.py` has every combination
ARTIFACTS: dict[str, dict[str, Any]] = {
    "pixart-alpha": {"shapes": SHAPES},
    "sdxl": {"shapes": (Shape(64, 64),), "options": Options.parse({"dynamic": True}), "components": ("unet",)},
    "sdxl-ip-adapter": {"shapes": (Shape(64, 64),), "scope": "regional", "components": ("unet", "image_encoder")},
    "sd21": {"shapes": (Shape(128, 128),), "scope": "regional", "components": ("unet",)},
    "latte": {"shapes": (Shape(64, 64),), "scope": "regional"},
    "sd3": {"shapes": (Shape(64, 64),), "components": ("transformer", "vae.decoder", "text_encoder")},
}
Artifact: TypeAlias = tuple[LocalStore, Built]


@pytest.fixture(scope="session")
def build_pool() -> Iterator[ThreadPoolExecutor]:
    """Builds run two at a time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield pool


@pytest.fixture(scope="session")
def artifacts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, build_pool: ThreadPoolExecutor
) -> Callable[[str], Artifact]:
    """The artifact of a recipe, in a store that no test may change.

    Those that a collected test needs begin with the first: they are most of the tests' time.
    """
    home = tmp_path_factory.mktemp("recipes") / "home"

    def made(name: str) -> Artifact:
        store = LocalStore(tmp_path_factory.mktemp("session") / "home" if name == "pixart-alpha" else home)
        row = ARTIFACTS[name] if name == "pixart-alpha" else {**ARTIFACTS[name], "cache_layer": False}
        return store, build(request_for(recipe=name, **row), store, progress=quiet, environ=os.environ)

    all_of_them = any("test_recipes" in item.nodeid for item in request.session.items)
    futures = {name: build_pool.submit(made, name) for name in ARTIFACTS if all_of_them or name == "pixart-alpha"}
    return lambda name: futures[name].result()


@pytest.fixture(scope="session", autouse=True)
def _begin(request: pytest.FixtureRequest) -> None:
    """Builds begin with the session if any of its tests will need one: there is other work for the meantime."""
    for fixture in ("artifacts", "crossbuilt"):
        if any(fixture in item.fixturenames for item in request.session.items):
            request.getfixturevalue(fixture)


@pytest.fixture(scope="session")
def built(artifacts: Callable[[str], Artifact]) -> Artifact:
    """PixArt-alpha's."""
    return artifacts("pixart-alpha")


H200 = {"gpu": "h200", "simulate": True, "untuned": True, "cache_layer": False}
CROSS = {"a100-pcie-40gb": "sm_80", "l40s": "sm_89", "h200": "sm_90", "rtx-5090": "sm_120"}
OFTEN = ("a100-pcie-40gb", "h200")  # built in CI's run; each takes about a minute of one core


def cross_request(gpu: str) -> Request:
    """The smallest there is to compile: a text encoder of one layer."""
    dtype = "bfloat16" if gpu == "h200" else "float32"
    return request_for(**{**H200, "gpu": gpu}, shapes=SHAPES[:1], components=("text_encoder",), dtype=dtype)


@pytest.fixture(scope="session")
def crossbuilt(tmp_path_factory: pytest.TempPathFactory, build_pool: ThreadPoolExecutor) -> Callable[[str], Artifact]:
    """The artifact for a GPU that is not here. Two begin with the session; the others, of slow tests, when they are asked for."""
    store = LocalStore(tmp_path_factory.mktemp("cross") / "home")

    @cache
    def begun(gpu: str) -> Future[Built]:
        return build_pool.submit(build, cross_request(gpu), store, progress=quiet, environ=os.environ)

    for gpu in OFTEN:
        begun(gpu)
    return lambda gpu: (store, begun(gpu).result())


REGIONAL = (
    "pixart-alpha", "--variant", "tiny", "--gpu", "cpu", "--components", "transformer", "--shape", "64x64",
    "--no-cache-layer", "--scope", "regional", "--json",
)  # fmt: skip
BUILD_REGIONAL = [sys.executable, "-m", "aot.cli.app", "build", *REGIONAL]
Regional: TypeAlias = tuple[Path, list[tuple[str, str, int]]]


@pytest.fixture(scope="session")
def regional(tmp_path_factory: pytest.TempPathFactory) -> Regional:
    """A store that two builds of one artifact were begun on at once; and of each what it wrote, and its exit code."""
    home = tmp_path_factory.mktemp("regional") / "home"
    environ = {**os.environ, "AOT_HOME": str(home)}
    both = [subprocess.Popen(BUILD_REGIONAL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) for _ in range(2)]
    return home, [(*process.communicate(), process.returncode) for process in both]


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
