"""What a miss falls back to."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from aot.artifact.certificate import compare
from aot.compiler.inductor import _kept_probes, jit, prepare_forks
from aot.request.options import Options


@pytest.mark.compiles
def test_a_fallback_to_torch_compile_takes_every_height_and_width_in_one_graph() -> None:
    convolution = torch.nn.Conv2d(3, 4, 3, padding=1).eval()
    compiled = jit(convolution.forward, Options.parse({"mode": "default", "dynamic": True}))
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for height, width in ((16, 24), (24, 16), (32, 32), (40, 18)):
            image = torch.randn(2, 3, height, width)
            assert compare(compiled(image), convolution(image)).relative_l2 <= 1e-5
    assert counters["stats"]["unique_graphs"] == before + 1


def test_probes_of_a_cpu_are_kept_where_nobody_else_may_put_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CXX", "g++-0")
    prepare_forks()
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*-*-g++-0-*"))  # nothing half made is left
    kept = list(folder.glob("aot-vectors-*"))
    assert _kept_probes() == folder / f"aot-vectors-{torch.__version__}-g++-0"
    assert kept in ([], [folder / f"aot-vectors-{torch.__version__}-g++-0"])  # where this CPU was probed before nothing is compiled
    for path, mode in ((kept[0] if kept else folder, 0o777), (folder, 0o775)):
        path.chmod(mode)
        assert _kept_probes() is None
        path.chmod(0o700)
    assert _kept_probes() is not None
