"""Real artifacts, compiled once a session and shared by every test that loads: PixArt-alpha tiny at two sizes, and one of each recipe."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from aot.artifact import ledger
from aot.building.build import Built
from aot.cache_store.local import LocalStore
from aot.request.options import Options
from aot.request.request import Request
from aot.request.shape import Shape
from tests.shared import Shared, compile_quickly

SHAPES = (Shape(64, 64), Shape(64, 96))
# sizes that both halvings of SDXL's latents divide, and a rare one
DYNAMIC = tuple(map(Shape.parse, ("64x64", "96x640", "640x96", "72x200")))


def request_for(**changes: Any) -> Request:
    """The session artifact's request, changed."""
    given = {"recipe": "pixart-alpha", "variant": "tiny", "shapes": SHAPES, "gpu": "cpu", "options": Options()}
    return Request(**{**given, **changes})


# what the tests of recipes load: each once a session, whole or regional by turns. Slow tests have the decoders that are left
# out here, `scripts/matrix.py` every combination
ARTIFACTS: dict[str, dict[str, Any]] = {
    "pixart-alpha": {"shapes": SHAPES},
    "sdxl": {"shapes": DYNAMIC, "options": Options.parse({"dynamic": True}), "components": ("unet",)},
    "sdxl-ip-adapter": {"shapes": (Shape(64, 64),), "scope": "regional", "components": ("unet", "image_encoder")},
    "sd21": {"shapes": (Shape(128, 128),), "scope": "regional", "components": ("unet",)},
    "latte": {"shapes": (Shape(64, 64),), "scope": "regional", "components": ("transformer",)},
    "sd3": {"shapes": (Shape(64, 64),), "components": ("transformer", "text_encoder")},
}
Artifact: TypeAlias = tuple[LocalStore, Built]
FROZEN = Options.parse({"mode": "freezing"})
H200 = {"gpu": "h200", "simulate": True, "untuned": True, "cache_layer": False}
CROSS = {"a100-pcie-40gb": "sm_80", "l40s": "sm_89", "h200": "sm_90", "rtx-5090": "sm_120"}
OFTEN = ("h200",)  # built in CI's run; each takes about a minute of one core
# the fixtures that hold an artifact: tests that ask for one come last, for it is being built meanwhile
ARTIFACT_FIXTURES = {"artifacts", "built", "store", "cached", "crossbuilt", "regional", "frozen", "load"}


def cross_request(gpu: str) -> Request:
    """The smallest there is to compile: a text encoder of one layer."""
    dtype = "bfloat16" if gpu == "h200" else "float32"
    return request_for(**{**H200, "gpu": gpu}, shapes=SHAPES[:1], components=("text_encoder",), dtype=dtype)


def pytest_configure() -> None:
    compile_quickly(os.environ)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ARTIFACT_FIXTURES & {*getattr(item, "fixturenames", ())}:
            item.add_marker("compiles")
        if item.get_closest_marker("compiles") and _of_module(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: item.get_closest_marker("compiles") is not None)


def _of_module(item: pytest.Item) -> bool:
    """Whether it shares with its module what two processes would each build."""
    found = getattr(item, "_fixtureinfo", None)
    return found is not None and any(one.scope == "module" for several in found.name2fixturedefs.values() for one in several)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Of all the processes of this session: pytest-xdist gives each a folder in a common one."""
    own = tmp_path_factory.getbasetemp()
    return Shared(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def artifacts(shared: Shared) -> Callable[[str], Artifact]:
    """The artifact of a recipe, in a store that no test may change."""

    def made(name: str) -> Artifact:
        if name == "pixart-alpha":
            return shared.built(name, request_for(recipe=name, **ARTIFACTS[name]))
        return shared.built(name, request_for(recipe=name, **ARTIFACTS[name], cache_layer=False), shared.folder / "recipes")

    return made


@pytest.fixture(scope="session")
def crossbuilt(shared: Shared) -> Callable[[str], Artifact]:
    """The artifact for a GPU that is not here."""
    return lambda gpu: shared.built(f"cross-{gpu}", cross_request(gpu), shared.folder / "cross")


@pytest.fixture(scope="session")
def frozen(shared: Shared) -> LocalStore:
    """PixArt-alpha's denoiser with its weights inside."""
    request = request_for(components=("transformer",), shapes=SHAPES[:1], cache_layer=False, options=FROZEN)
    return shared.built("frozen", request)[0]


@pytest.fixture(scope="session")
def built(artifacts: Callable[[str], Artifact]) -> Artifact:
    """PixArt-alpha's."""
    return artifacts("pixart-alpha")


@pytest.fixture(autouse=True)
def _own_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves served is not told of in the next one's `aot.stats()`."""
    monkeypatch.setattr(ledger, "_process", replace(ledger._process, ledgers=[*ledger._process.ledgers]))


@pytest.fixture(scope="session", autouse=True)
def _begin(request: pytest.FixtureRequest) -> Iterator[None]:
    """The artifacts that any test will need are built from the session's begin on, one after another, beside other tests."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        yield
        return
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    work: list[Callable[[], Any]] = []
    if "artifacts" in asked:
        names = ARTIFACTS if any("test_recipes" in item.nodeid for item in request.session.items) else ("pixart-alpha",)
        artifacts = request.getfixturevalue("artifacts")
        work += [partial(artifacts, name) for name in names]
    if "crossbuilt" in asked:
        crossbuilt = request.getfixturevalue("crossbuilt")
        work += [partial(crossbuilt, gpu) for gpu in OFTEN]
    with ThreadPoolExecutor(max_workers=1) as pool:
        for each in work:
            pool.submit(each)
        yield
        pool.shutdown(cancel_futures=True)


REGIONAL = (
    "pixart-alpha", "--variant", "tiny", "--gpu", "cpu", "--components", "transformer", "--shape", "64x64",
    "--no-cache-layer", "--scope", "regional", "--json",
)  # fmt: skip
BUILD_REGIONAL = [sys.executable, "-m", "aot.cli.app", "build", *REGIONAL]
Regional: TypeAlias = tuple[Path, list[tuple[str, str, int]]]


@pytest.fixture(scope="session")
def regional(shared: Shared) -> Regional:
    """A store that two builds of one artifact were begun on at once; and of each what it wrote, and its exit code."""

    def make(folder: Path) -> str:
        environ = {**os.environ, "AOT_HOME": str(folder)}
        both = [subprocess.Popen(BUILD_REGIONAL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) for _ in range(2)]
        return json.dumps([(*process.communicate(), process.returncode) for process in both])

    return shared.folder / "regional", json.loads(shared.once("regional", make))


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
