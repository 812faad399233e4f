from collections.abc import Callable, Iterator

import pytest
import torch

import aot
from aot.errors import Conflict
from aot.machine.settings import DEFAULTS, claim, complete
from aot.request.options import Options
from tests.pixart import make_pipe

LOW, HIGH = complete(Options.parse({"mode": "O3"}).process), complete(Options.parse({"mode": "O2"}).process)


@pytest.fixture
def claims() -> Iterator[list[Callable[[], None]]]:
    releases: list[Callable[[], None]] = []
    yield releases
    for release in releases:
        release()
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_torch_still_has_the_defaults_that_artifacts_are_keyed_by() -> None:
    """In a process of its own: a setting that another test left behind would pass for the default."""
    import subprocess
    import sys

    program = "import torch\nfrom operator import attrgetter\nfrom aot.machine.settings import DEFAULTS\n"
    program += "assert {name: attrgetter(name)(torch.backends) for name in DEFAULTS} == DEFAULTS"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_relied_on_is_set_and_put_back_once_nobody_relies_on_it(claims: list[Callable[[], None]]) -> None:
    claims += [claim("one", LOW), claim("two", LOW)]
    assert torch.backends.cuda.matmul.allow_tf32 is True
    claims[0]()
    assert torch.backends.cuda.matmul.allow_tf32 is True
    claims[1]()
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_opposite_is_refused_naming_both_and_the_setting_and_sets_nothing(claims: list[Callable[[], None]]) -> None:
    claims.append(claim("the first", HIGH))
    with pytest.raises(Conflict, match=r"the second needs torch\.backends\.cuda\.matmul\.allow_tf32 = True.*the first") as caught:
        claim("the second", LOW)
    assert "restore()" in caught.value.remedy
    assert torch.backends.cuda.matmul.allow_tf32 is False
    claims[0]()
    claims.append(claim("the second", LOW))


def test_a_mode_says_something_of_every_setting() -> None:
    assert HIGH == DEFAULTS
    assert {name for name in LOW if LOW[name] != HIGH[name]} == {"cuda.matmul.allow_tf32"}
    assert complete(Options.parse({"mode": "benchmark"}).process)["cudnn.benchmark"]


def test_two_pipelines_of_opposite_modes_cannot_share_a_process_until_one_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "0")
    low, benchmarked = make_pipe(), make_pipe()
    aot.compile_pipe(low, options={"mode": "O3", "options": {"overrides.conv_benchmark": False}})
    with pytest.raises(Conflict, match=r"cudnn\.benchmark"):
        aot.compile_pipe(benchmarked, options={"mode": "O3:benchmark", "memory_format": "channels_last"})
    assert "forward" not in vars(benchmarked.transformer)
    assert benchmarked.vae.decoder.conv_in.weight.is_contiguous()
    assert len(aot.stats()) == 1
    aot.restore(low)
    aot.restore(aot.compile_pipe(benchmarked, options={"mode": "O3:benchmark"}))
    assert torch.backends.cudnn.benchmark is False
