import pytest
import torch
from torch import nn

from aot.building.graphs import _Compiled, _left
from aot.building.plan import Unit
from aot.building.recorded import make_plan
from aot.compiler.inductor import Traced
from aot.model.capture import in_dtype
from aot.model.traced import TracedCode
from aot.model.writes import SAME
from aot.request.options import Options
from aot.request.shape import Shape
from tests.conftest import SHAPES, request_for
from tests.pixart import RECIPE, denoise, make_pipe


def test_the_pipeline_tells_how_it_calls_its_components_at_each_size() -> None:
    plan = make_plan(RECIPE, request_for())
    shapes = [(call.component, call.signature.specs[0].shape) for call in plan.calls]
    assert shapes == [
        ("transformer", (2, 4, 8, 8)),
        ("transformer", (2, 4, 8, 12)),
        ("vae.decoder", (1, 4, 8, 8)),
        ("vae.decoder", (1, 4, 8, 12)),
    ]
    assert len(plan.units) == 4
    timestep = dict(plan.calls[0].signature.named())["timestep"]
    assert (timestep.dtype, timestep.shape, timestep.stride) == ("int64", (2,), (0,))


def test_capture_leaves_the_pipeline_as_it_was() -> None:
    pipeline = make_pipe()
    plan = make_plan(RECIPE, request_for(), pipeline=pipeline)
    assert all("forward" not in vars(module) for module in plan.modules.values())
    assert torch.equal(denoise(pipeline), denoise(make_pipe()))


def test_identical_blocks_are_one_graph_though_the_first_ones_tensors_lie_otherwise() -> None:
    plan = make_plan(RECIPE, request_for(variant="small", scope="regional", shapes=(Shape(64, 64),)))
    blocks, decoder = plan.units
    assert set(blocks.paths) == {f"transformer_blocks.{index}" for index in range(12)}
    (first,) = blocks.others
    assert first.differs(blocks.signature) == "hidden_states.stride is (2048, 128, 1), built for (2048, 1, 16)"
    assert (decoder.component, decoder.paths) == ("vae.decoder", ("",))


def test_calls_whose_tensors_lie_otherwise_get_a_graph_of_their_own_where_it_writes_to_them() -> None:
    plan = make_plan(RECIPE, request_for(variant="small", scope="regional", shapes=(Shape(64, 64),)))
    blocks = plan.units[0]
    code = TracedCode.of({}, plan.kinds[blocks.kind].module)

    def left(*, mutates: bool) -> list[Unit]:
        return _left(blocks, _Compiled(Traced((), SAME, code, mutates, None)))

    assert left(mutates=False) == []
    assert [(unit.signature, unit.paths) for unit in left(mutates=True)] == [(blocks.others[0], blocks.paths)]


def test_capturing_twice_gives_the_same_key() -> None:
    assert make_plan(RECIPE, request_for()).key == make_plan(RECIPE, request_for()).key


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"shapes": SHAPES[:1]}, {"shapes", "signatures/transformer", "signatures/vae.decoder"}),
        ({"scope": "regional"}, {"scope", "signatures/transformer"}),
        ({"batches": (2,)}, {"batch", "signatures/transformer", "signatures/vae.decoder"}),
        ({"guidance": "off"}, {"guidance", "signatures/transformer"}),
        ({"options": Options.parse({"dynamic": True})}, {"dynamic", "signatures/transformer", "signatures/vae.decoder"}),
        (
            {"options": Options.parse({"mode": "O2:freezing"})},
            {"mode", "component/transformer/weights", "component/vae.decoder/weights"},
        ),
        ({"cache_layer": False}, {"layers"}),
        (
            {"dtype": "bfloat16"},
            {f"component/{path}/{part}" for path in ("transformer", "vae.decoder") for part in ("dtype", "fingerprint", "state")}
            | {"signatures/transformer", "signatures/vae.decoder"},
        ),
        ({"fuse_qkv": True}, {"component/transformer/fingerprint", "component/transformer/state"}),
    ],
)
def test_what_is_asked_moves_exactly_its_own_parts(changes: dict[str, object], parts: set[str]) -> None:
    base, other = make_plan(RECIPE, request_for()).key, make_plan(RECIPE, request_for(**changes)).key
    assert {name for name, _, _ in base.diff(other)} == parts
    assert base.digest != other.digest


def test_a_smaller_tree_of_components_is_a_smaller_plan() -> None:
    plan = make_plan(RECIPE, request_for(components=("vae.decoder",)))
    assert list(plan.modules) == ["vae.decoder"]
    assert {unit.component for unit in plan.units} == {"vae.decoder"}


def test_weights_of_several_dtypes_are_the_very_ones_again_after_they_were_brought_to_another() -> None:
    module = nn.Sequential(nn.Linear(2, 2).to(torch.float16), nn.BatchNorm1d(2))
    before = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    numbers = {name: weight.clone() for name, weight in before.items()}
    with in_dtype(module, torch.float64):
        assert {weight.dtype for weight in module.parameters()} == {torch.float64}
    after = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert all(after[name] is before[name] for name in before)
    assert all(after[name].dtype == number.dtype and torch.equal(after[name], number) for name, number in numbers.items())
