"""What a miss falls back to."""

import pytest
import torch
from torch._dynamo.utils import counters

from aot.artifact.certificate import compare
from aot.compiler.inductor import jit
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
