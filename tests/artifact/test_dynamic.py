"""Ranges of sizes: what one graph serves, and what it must never be given."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from aot.artifact.certificate import compare
from aot.artifact.dynamic import DynamicRange, corners, fit, probes
from aot.building.plan import make_plan
from aot.compiler.inductor import jit
from aot.errors import Unsupported
from aot.model.signature import Signature
from aot.recipes import RECIPES, find
from aot.request.options import Options
from aot.request.recipe import Bucket
from aot.request.request import Request
from aot.request.shape import Shape

EVEN, ODD = Bucket(32), Bucket(8, unless=32)


def _call(height: int, width: int, **changes: Any) -> Signature:
    """A UNet's call at a size in latents."""
    call = {"sample": torch.empty(2, 4, height, width), "timestep": torch.tensor(1.0), "text": torch.empty(2, 77, 8), **changes}
    return Signature.of((), call)[0]


def _range(bucket: Bucket, near: Shape = Shape(256, 256)) -> DynamicRange:
    sizes, scale = probes(bucket, near), bucket.divisor // 8
    return fit([_call(h * scale, w * scale) for h, w in sizes], sizes, bucket)


@given(st.integers(2, 64), st.integers(2, 64))
def test_a_range_holds_every_size_of_its_bucket(height: int, width: int) -> None:
    assert _range(EVEN).refuses(_call(4 * height, 4 * width)) is None
    assert _range(EVEN).at((height, width)) == _call(4 * height, 4 * width)


@given(st.integers(8, 300), st.integers(8, 300))
def test_the_two_buckets_of_a_unet_share_no_size_and_leave_out_none(height: int, width: int) -> None:
    shape, call = Shape(8 * height, 8 * width), _call(height, width)
    held = [bucket for bucket in (EVEN, ODD) if _range(bucket).refuses(call) is None]
    assert held == [bucket for bucket in (EVEN, ODD) if bucket.holds(shape)]
    assert len(held) == (1 if all(64 <= side <= 2048 and (side > 32 or side % 32 == 0) for side in (shape.height, shape.width)) else 0)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (_call(30, 32), "sample.shape is (2, 4, 30, 32)"),
        (_call(4, 32), "32x256 pixels, built for sides of 64 to 2048"),
        (_call(1024, 32), "8192x256 pixels"),
        (_call(32, 32, sample=torch.empty(1, 4, 32, 32)), "sample.shape is (1, 4, 32, 32)"),
        (_call(32, 32, sample=torch.empty(2, 4, 32, 32).bfloat16()), "sample.dtype is bfloat16"),
        (_call(32, 32, sample=torch.empty(2, 4, 32, 32).to(memory_format=torch.channels_last)), "sample.stride"),
        (_call(32, 32, sample=torch.empty(2, 4, 32, 33)[..., :32]), "sample.stride"),
        (_call(32, 32, sample=torch.empty(4, 32, 32)), "sample.shape is (4, 32, 32)"),
        (_call(32, 32, text=torch.empty(2, 78, 8)), "text.shape is (2, 78, 8)"),
        (_call(32, 32, timestep=torch.tensor(1)), "timestep.dtype is int64"),
        (_call(32, 32, text=None), "text is None"),
        (_call(32, 32, more=torch.empty(1)), "more"),
    ],
)
def test_a_call_outside_the_range_is_refused_naming_the_field(call: Signature, names: str) -> None:
    reason = _range(EVEN).refuses(call)
    assert reason is not None
    assert names in reason


def test_sizes_left_out_are_said() -> None:
    reason = _range(ODD).refuses(_call(64, 64))
    assert reason == "the size is 512x512 pixels, built for those not multiples of 32 on both sides"


def test_json_inverts() -> None:
    for bucket in (EVEN, ODD):
        found = _range(bucket)
        assert DynamicRange.from_json(found.to_json()) == found


def test_a_product_of_height_and_width_is_a_range_of_areas() -> None:
    sizes = probes(Bucket(16), Shape(256, 256))
    found = fit([Signature.of((torch.empty(2, h * w, 24),), {})[0] for h, w in sizes], sizes, Bucket(16))
    assert found.by_area
    assert str(found) == "float32[2,hw,24]"
    assert found.refuses(Signature.of((torch.empty(2, 35, 24),), {})[0]) is None
    reason = found.refuses(Signature.of((torch.empty(2, 3, 24),), {})[0])
    assert reason is not None
    assert "area" in reason


def test_sizes_that_follow_no_rule_have_no_dynamic_graph() -> None:
    sizes = probes(ODD, Shape(256, 256))
    with pytest.raises(Unsupported, match="follow no rule"):
        fit([Signature.of((torch.empty(2, -(-h // 2) * -(-w // 2), 8),), {})[0] for h, w in sizes], sizes, ODD)


@pytest.mark.parametrize("bucket", [EVEN, ODD, Bucket(16), Bucket(64), Bucket(8, unless=64)], ids=str)
@pytest.mark.parametrize("near", [Shape(64, 64), Shape(512, 768), Shape(1024, 1024), Shape(544, 408)], ids=str)
def test_what_is_traced_and_checked_is_in_the_bucket(bucket: Bucket, near: Shape) -> None:
    for height, width in probes(bucket, near):
        assert height != width
        assert bucket.holds(Shape(height * bucket.divisor, width * bucket.divisor))
    found = corners(bucket, near)
    assert all(map(bucket.holds, found))
    assert {shape.height > shape.width for shape in found} == {True, False}
    if bucket.unless:
        assert any(shape.height % bucket.unless == 0 for shape in found)
        assert any(shape.width % bucket.unless == 0 for shape in found)


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_seeds_own_sizes_are_in_exactly_one_bucket_of_each_component(name: str) -> None:
    recipe = find(name)
    for item in recipe.components:
        for shape in recipe.seed_shapes:
            assert sum(bucket.holds(shape) for bucket in recipe.buckets(item)) == 1


@pytest.mark.parametrize("name", ["pixart-alpha", "latte", "sdxl", "sd3"])  # the others are the same classes
def test_a_dynamic_plan_has_a_range_a_bucket_and_each_call_is_in_exactly_one(name: str) -> None:
    recipe = find(name)
    request = Request(name, "tiny", (recipe.variant("tiny").shape,), gpu="cpu", options=Options.parse({"dynamic": True}))
    plan = make_plan(recipe, request)
    for path, item in ((item.path, item) for item in recipe.pick(())):
        ranges = [unit.dynamic for unit in plan.units if unit.component == path]
        assert len(ranges) == len(recipe.buckets(item))
    for call in [*plan.calls, *plan.checks]:
        ranges = [unit.dynamic for unit in plan.units if unit.component == call.component]
        assert sum(dynamic is not None and dynamic.refuses(call.signature) is None for dynamic in ranges) == 1


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
