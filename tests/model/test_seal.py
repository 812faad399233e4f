"""A seal: broken by whatever changes, whole again when it is put back."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional

from aot.model.fingerprint import Fingerprint
from aot.model.seal import Seal
from aot.model.traced import TracedCode
from aot.model.tracing import tracing


class _Settings:
    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 2.0


class Layer(nn.Module):
    slope = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.SiLU())
        self.table, self.sizes, self.known = {"a": [1.0], "b": 2}, [1, 2], {1, 2}
        self.kept, self.settings = torch.ones(2), _Settings()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(functional.gelu(self.inner(x))) + self.kept * self.table["a"][0]

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.slope * self.settings.factor


MODEL = nn.Sequential(Layer(), Layer()).eval()
with torch.no_grad(), tracing() as _codes:
    torch.export.export(copy.deepcopy(MODEL), (torch.ones(2),), strict=False)
CODE = TracedCode.of(_codes, MODEL)


def _swap(children: dict[str, Any]) -> None:
    first = next(iter(children))
    children[first] = children.pop(first)


def _recoded(stack: ExitStack) -> None:
    stack.callback(setattr, Layer.scaled, "__code__", Layer.scaled.__code__)
    Layer.scaled.__code__ = (lambda self, x: x).__code__


CHANGES: dict[str, Callable[[Any, ExitStack], object]] = {
    "an attribute": lambda layer, _: setattr(layer, "other", 1),
    "an attribute gone": lambda layer, _: delattr(layer, "table"),
    "an inner list": lambda layer, _: layer.table["a"].append(3),
    "a list": lambda layer, _: layer.sizes.reverse(),
    "a set": lambda layer, _: layer.known.add(3),
    "a slot": lambda layer, _: setattr(layer.settings, "factor", 3.0),
    "a class": lambda layer, _: setattr(layer.inner, "__class__", nn.ModuleList),
    "a hook": lambda layer, _: layer.inner.register_forward_hook(print),
    "a hook before": lambda layer, _: layer.inner.register_forward_pre_hook(print),
    "a child": lambda layer, _: layer.inner[1].add_module("lora", nn.Identity()),
    "a child replaced": lambda layer, _: layer.inner.__setitem__(1, nn.SiLU()),
    "the order of children": lambda layer, _: _swap(layer.inner._modules),
    "an equal dict in another order": lambda layer, _: setattr(layer.inner, "_modules", dict(reversed(layer.inner._modules.items()))),
    "one more weight": lambda layer, _: layer.inner[1].register_buffer("extra", None),
    "a kept tensor's numbers": lambda layer, _: layer.kept.add_(1),
    "a kept tensor's memory": lambda layer, _: setattr(layer.kept, "data", torch.zeros(2)),
    "the order of a dict": lambda layer, _: _swap(layer.table),
    "all attributes": lambda layer, _: setattr(layer.inner, "__dict__", {**vars(layer.inner), "training": True}),
    "training": lambda layer, _: layer.inner[1].train(),
    "a method": lambda _, stack: stack.enter_context(mock.patch.object(Layer, "scaled", lambda self, x: x)),
    "a class' attribute": lambda _, stack: stack.enter_context(mock.patch.object(Layer, "slope", 2.0)),
    "an override": lambda _, stack: stack.enter_context(mock.patch.object(nn.SiLU, "__call__", print, create=True)),
    "a function of torch": lambda _, stack: stack.enter_context(mock.patch.object(functional, "gelu", print)),
    "a function's code": lambda _, stack: _recoded(stack),
    "a global hook": lambda _, stack: stack.callback(nn.modules.module.register_module_forward_hook(print).remove),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_breaks_it(what: str) -> None:
    model = copy.deepcopy(MODEL)
    seal = Seal(model, Fingerprint.of(model).met, CODE)
    assert seal.holds()
    with ExitStack() as stack:
        CHANGES[what](model[1], stack)
        assert not seal.holds()


def test_it_holds_again_when_it_was_put_back_and_weights_are_free() -> None:
    model = copy.deepcopy(MODEL)
    seal = Seal(model, Fingerprint.of(model).met, CODE)
    layer: Any = model[0].inner
    layer[0].weight = nn.Parameter(torch.zeros(2, 2))
    layer[0].bias.data = torch.ones(2)
    assert seal.holds()
    plain = layer[1]
    layer[1] = nn.ReLU()
    assert not seal.holds()
    layer[1] = plain
    assert seal.holds()


def test_an_equal_dict_in_the_place_of_another_is_looked_into_from_then_on() -> None:
    model = copy.deepcopy(MODEL)
    seal = Seal(model, Fingerprint.of(model).met, CODE)
    layer: Any = model[0]
    layer.table = copy.deepcopy(layer.table)
    layer.inner._modules = dict(layer.inner._modules)
    layer.inner.__dict__ = dict(vars(layer.inner))
    for _ in range(2):
        assert seal.holds()
    layer.table["b"] = 3
    assert not seal.holds()
    layer.table["b"] = 2
    assert seal.holds()
    layer.inner[1] = nn.ReLU()
    assert not seal.holds()


def test_what_cannot_be_compared_breaks_it() -> None:
    model = copy.deepcopy(MODEL)
    seal = Seal(model, Fingerprint.of(model).met, CODE)
    model[0].sizes = torch.ones(2)  # is not equal to a list, and has no truth
    assert not seal.holds()
