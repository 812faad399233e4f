"""The plan of a Record."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aot.artifact.book import Kind
from aot.building.plan import Plan
from aot.building.recorded import plan_recorded
from aot.errors import BadInput, Unsupported
from aot.machine.device import Device
from aot.model.fingerprint import Fingerprint
from aot.model.slots import is_slotted
from aot.request.options import Options
from aot.request.record import record
from aot.request.recorded import Recorded


class Block(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.place, self.width, self.inner = place, 8, nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Blocks(nn.Module):
    """Its blocks keep which one they are, and nothing reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(0), Block(1)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Reads(nn.Module):
    """Has an attribute of that name too, and computes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.inner = 3, nn.Sequential(nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.place


def test_only_what_tells_blocks_apart_is_left_out_and_only_of_those_blocks() -> None:
    pipe = SimpleNamespace(components={"transformer": Blocks(), "prior": Reads(), "name": "no module"})
    with record(pipe, name="both") as found, torch.no_grad():
        for name in ("transformer", "prior"):
            pipe.components[name](torch.ones(1, 8))
    request = Recorded(name="both", gpu="cpu", options=Options(), scope="regional", cache_layer=False)
    plan = plan_recorded(found, request, Device.of("cpu"))
    blocks, whole = (plan.kinds[unit.kind] for unit in plan.units)
    assert [unit.paths for unit in plan.units] == [("blocks.0", "blocks.1"), ("",)]
    assert (blocks.unread, whole.unread) == (("place",), ())
    kinds = [Kind(kind.fingerprint, unread=kind.unread) for kind in (blocks, whole)]
    assert [kind.structure_differs(Fingerprint.of(module)) for kind, module in zip(kinds, (Block(7), Reads()), strict=True)] == [None, None]
    other = Reads()
    other.place = 4
    assert "place=4" in (kinds[1].structure_differs(Fingerprint.of(other)) or "")
    wider = Block(0)
    wider.width = 9
    assert "width=9" in (kinds[0].structure_differs(Fingerprint.of(wider)) or "")


class Twice(nn.Module):
    """The same part within a block and beside it, as transformers have a norm of their last block and one at their end."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Sequential(OrderedDict(first=nn.Linear(8, 8), second=nn.Linear(8, 8))) for _ in range(2)]
        self.apart, self.blocks = parts[0], nn.ModuleList(parts[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.blocks[0](self.apart(x))
        return found


def test_a_shared_graph_is_made_of_the_part_with_the_most_room_for_adapters() -> None:
    def plan(*targets: str) -> Plan:
        pipe = SimpleNamespace(components={"transformer": Twice()})
        with record(pipe, name="twice") as found, torch.no_grad():
            pipe.components["transformer"](torch.ones(1, 8))
        request = Recorded(
            name="twice", gpu="cpu", options=Options(), scope="regional", cache_layer=False, lora_rank=2, lora_targets=targets
        )
        return plan_recorded(found, request, Device.of("cpu"))

    found = plan()
    (unit,) = found.units
    assert unit.paths == ("apart", "blocks.0")
    assert found.slots == {"transformer": ["blocks.0.first", "blocks.0.second"]}
    assert [is_slotted(layer) for layer in found.kinds[unit.kind].module.children()] == [True, True]
    assert plan("apart.first").slots == {"transformer": ["apart.first"]}
    with pytest.raises(BadInput, match=r"gives transformer\.\S+ and transformer\.\S+ different slots"):
        plan("apart.first", "blocks.0.second")


def test_a_component_whose_later_call_has_no_identity_is_left_out_whole() -> None:
    pipe = SimpleNamespace(components={"prior": Reads()})
    with record(pipe, name="prior") as found, torch.no_grad():
        pipe.components["prior"](torch.ones(1, 8))
        with suppress(TypeError):
            pipe.components["prior"](x=object())
    assert (found.modules, found.calls, list(found.left)) == ({}, [], ["prior"])


class Asks(nn.Module):
    """Looks at a number, and has no part that is worth a graph: most of its weights are its own."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(1400))
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8, bias=False)) for _ in range(parts)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x) if x.sum() > 0 else part(-x)
        return x * self.table[0]


def test_parts_of_glue_are_weighed_with_their_like_and_a_component_without_any_is_left_by_name() -> None:
    def plan(parts: int, *components: str) -> Plan:
        pipe = SimpleNamespace(components={"prior": Asks(parts), "transformer": Blocks()})
        with record(pipe, name="both") as found, torch.no_grad():
            for part in pipe.components.values():
                part(torch.ones(1, 8))
        request = Recorded(name="both", gpu="cpu", options=Options(), components=components, cache_layer=False)
        return plan_recorded(found, request, Device.of("cpu"))

    many = plan(8)  # 1 in 30 each, a quarter together
    assert [unit.paths for unit in many.units if unit.component == "prior"] == [tuple(f"parts.{place}" for place in range(8))]
    assert many.covered() == {"prior": 0.268, "transformer": 1.0}
    none = plan(1)
    assert list(none.modules) == ["transformer"]
    assert none.left == {"prior": "prior reads tensors' numbers, and nothing in it is large enough to be compiled."}
    with pytest.raises(Unsupported, match="nothing in it is large enough"):
        plan(1, "prior")


def test_a_weight_in_two_places_is_one_on_a_simulated_gpu_too() -> None:
    """As T5 ties its embeddings: two fakes in its place would be another fingerprint than the live model's."""
    from aot.machine.simulated import new_mode, simulated, to_fake
    from aot.machine.sku import find_sku

    module = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4, bias=False))
    module[1].weight = module[0].weight
    plain = Fingerprint.of(module)
    with simulated(find_sku("h200")):
        to_fake(module, new_mode())
    assert module[1].weight is module[0].weight
    assert Fingerprint.of(module, fakes=True).essence == plain.essence


class Mixed(nn.Module):
    """Some of its weights are kept in float32, as those that embed patches often are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(8, 8), nn.ModuleList([Block(0), Block(0)]).to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).to(torch.bfloat16)
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_are_compiled_in_their_own_dtype_and_not_in_that_of_the_components_first_weight() -> None:
    module = Mixed()
    with record(module, name="mixed") as found, torch.no_grad():
        module(torch.ones(2, 8))
    request = Recorded(name="mixed", gpu="cpu", options=Options(), scope="regional", cache_layer=False)
    (unit,) = plan_recorded(found, request, Device.of("cpu")).units
    assert (unit.paths, unit.dtype) == (("blocks.0", "blocks.1"), torch.bfloat16)
