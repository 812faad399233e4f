"""Golden outputs without a device: the eager model's, which the graphs must reproduce."""

from pathlib import Path

import pytest

from aot.artifact.book import FILE as BOOK
from aot.artifact.book import Book
from aot.artifact.golden import FILE, Golden
from aot.artifact.ledger import Ledger
from aot.artifact.opened import unpack
from aot.building import reference as module
from aot.building.plan import Plan
from aot.building.recorded import make_plan
from aot.building.reference import available_memory, reference
from aot.machine.device import Device
from tests.artifacts import admitted
from tests.conftest import SHAPES, Artifact, request_for
from tests.pixart import RECIPE


@pytest.fixture
def opened(built: Artifact, tmp_path: Path) -> tuple[Plan, Book, Golden]:
    """The session's artifact: its plan, its shape book, and what its graphs answered at its build."""
    store, made = built
    (layer,) = [layer for layer in made.manifest.layers if layer.kind == "graph"]
    unpack(store, admitted(store, made.digest), layer=layer, into=tmp_path, ledger=Ledger())
    return make_plan(RECIPE, request_for(shapes=SHAPES)), Book.parse((tmp_path / BOOK).read_bytes()), Golden.read(tmp_path / FILE)


def test_the_eager_model_answers_what_the_graphs_do(opened: tuple[Plan, Book, Golden]) -> None:
    plan, book, golden = opened
    found = reference(plan, book, Device.of("cpu"))
    assert isinstance(found, Golden)
    assert found.outputs.keys() == golden.outputs.keys()
    for file, outputs in golden.outputs.items():
        for (shape, theirs), (other, ours) in zip(outputs or (), found.outputs[file] or (), strict=True):
            assert shape == other
            assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5


@pytest.mark.parametrize(
    ("name", "value", "words"), [("_SPARE", 1 << 60, "GiB in float32"), ("_MOST_FLOP", 1, "floating-point operations")]
)
def test_what_is_too_much_for_this_host_is_not_run_and_told(
    opened: tuple[Plan, Book, Golden], monkeypatch: pytest.MonkeyPatch, name: str, value: int, words: str
) -> None:
    monkeypatch.setattr(module, name, value)
    found = reference(*opened[:2], Device.of("cpu"))
    assert isinstance(found, str)
    assert words in found


UNLIMITED, LIMITED = {"memory.max": "max\n", "memory.current": "5"}, {"memory.max": "100", "memory.current": "40"}


@pytest.mark.parametrize(("group", "expected"), [({}, 8 << 20), (UNLIMITED, 8 << 20), (LIMITED, 60)])
def test_a_containers_limit_counts(tmp_path: Path, group: dict[str, str], expected: int) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 16384 kB\nMemAvailable: 8192 kB\n")
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    for name, text in group.items():
        (tmp_path / "sys" / "fs" / "cgroup" / name).write_text(text)
    assert available_memory(tmp_path) == expected
