import copy
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from aot.model.fingerprint import Fingerprint
from aot.model.weights import LiveWeights, WeightForms
from aot.model.words import Words
from tests.pixart import make_pipe


def _transformer(seed: int = 0) -> Any:
    return make_pipe(seed).transformer


BASE = _transformer()
PRINT = Fingerprint.of(BASE)


def test_weights_values_and_gradients_do_not_enter() -> None:
    other = _transformer(5).requires_grad_(False)
    assert Fingerprint.of(other).digest == PRINT.digest
    assert Fingerprint.from_json(PRINT.to_json()) == PRINT


def _set(path: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda module: setattr(module.get_submodule(path), name, value)


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dtype": (lambda m: m.proj_out.half(), "proj_out"),
    "stride": (lambda m: m.pos_embed.proj.to(memory_format=torch.channels_last), "pos_embed.proj"),
    "shape": (_set("", "proj_out", nn.Linear(24, 33)), "proj_out"),
    "training": (lambda m: m.transformer_blocks[0].attn1.train(), "training=True"),
    "attribute": (_set("transformer_blocks.0.norm1", "eps", 1e-3), "eps=0.001"),
    "processor": (lambda m: setattr(m.transformer_blocks[0].attn1.processor, "scale", 0.5), "processor"),
    "private": (_set("transformer_blocks.1.ff", "_forward2", None), "_forward2"),
    "config": (lambda m: m.register_to_config(sample_size=99), "_internal_dict.sample_size=99"),
    "hook": (lambda m: m.proj_out.register_forward_hook(lambda *_: None), "hook"),
    "order": (lambda m: m.transformer_blocks._modules.update({"0": m.transformer_blocks._modules.pop("0")}), "another order"),
    "repeat": (lambda m: m.transformer_blocks.append(m.transformer_blocks[0]), "added"),
    "tied": (lambda m: setattr(m.transformer_blocks[1].attn1.to_q, "weight", m.transformer_blocks[0].attn1.to_q.weight), "=@"),
    "added": (_set("proj_out", "lora_A", nn.Linear(2, 2)), "call fuse_lora"),
    "gone": (lambda m: delattr(m.transformer_blocks[0].attn1, "to_k"), "gone"),
    "buffer": (lambda m: m.proj_out.register_buffer("extra", torch.zeros(2)), "extra"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_tracing_would_bake_in_moves_it_and_is_named(what: str) -> None:
    change, named = CHANGES[what]
    module = copy.deepcopy(BASE)
    change(module)
    live = Fingerprint.of(module)
    assert live.digest != PRINT.digest
    assert named in (PRINT.differs(live) or "")


def test_values_that_loading_code_leaves_behind_do_not_enter(tmp_path: Any) -> None:
    BASE.save_pretrained(tmp_path)
    assert Fingerprint.of(type(BASE).from_pretrained(tmp_path)).differs(PRINT) is None
    twin = copy.deepcopy(BASE)
    twin.transformer_blocks[0].attn1.to_out.forward = twin.transformer_blocks[0].attn1.to_out.forward  # its own, kept on the instance
    assert Fingerprint.of(twin).digest == PRINT.digest


def test_what_a_call_of_a_pipeline_leaves_behind_does_not_enter() -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    twin = copy.deepcopy(BASE)
    registry = HookRegistry.check_if_exists_or_initialize(twin)
    assert Fingerprint.of(twin).digest == PRINT.digest
    registry.register_hook(ModelHook(), "it")
    assert Fingerprint.of(twin).digest != PRINT.digest


def test_tuples_and_lists_of_equal_items_are_one() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    one.sizes, other.sizes = (1, [2, (3,)]), [1, (2, [3])]
    assert Fingerprint.of(one).digest == Fingerprint.of(other).digest
    other.sizes = [1, (2, [4])]
    assert Fingerprint.of(one).differs(Fingerprint.of(other)) == "the module has sizes=[1,[2,[4]]], built for sizes=[1,[2,[3]]]"


class _Kept:
    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


def _adds(n: int) -> Callable[[int], int]:
    return lambda x: x + n


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (torch.ones(2), torch.zeros(2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1, 2}, {1, 3}),
        (_Kept(x=1), _Kept(x=2)),
        (_Kept(x=_Kept(y=[1])), _Kept(x=_Kept(y=[2]))),
        (partial(torch.add, alpha=1), partial(torch.add, alpha=2)),
        (torch.float32, torch.float16),
        (math.sin, math.cos),
        (lambda x: x + 1, lambda x: x + 2),
        (_adds(1), _adds(2)),
        (1, 1.0),
        (True, 1),
        (_Kept, type("_Kept", (), {})),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
    ],
)
def test_values_of_any_kind_are_told_apart(value: Any, other: Any) -> None:
    prints = []
    for given in (value, copy.copy(value), other):
        module = nn.Linear(2, 2)
        object.__setattr__(module, "_value", given)
        prints.append(Fingerprint.of(module))
    assert prints[0].digest == prints[1].digest != prints[2].digest
    assert not prints[0].unknown


@pytest.mark.parametrize("value", [iter(()), threading.Lock(), torch.Generator(), [nn.Linear(1, 1)], torch.eye(2).to_sparse_csr()])
def test_what_has_no_exact_description_is_named_and_equals_nothing(value: Any) -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].__dict__["odd"] = value
    found = Fingerprint.of(module)
    assert found.unknown.startswith("0: ")
    assert found.digest != Fingerprint.of(nn.Sequential(nn.Linear(2, 2))).digest


def test_functions_of_torchs_own_bindings_are_told_by_their_name_alone() -> None:
    """What they are bound to is a record of pybind11, and their qualified name has the version of it in it."""
    assert Words().of(torch._C._functorch.get_unwrapped) == "builtin(torch._C._functorch.get_unwrapped)"
    assert Words().of([].append) != Words().of([1].append)


def test_a_cycle_of_objects_ends() -> None:
    module, kept = nn.Linear(2, 2), _Kept()
    kept.owner, kept.self = module, kept
    module.kept = kept
    assert "kept.owner=@the·module" in Fingerprint.of(module).lines[0][1]


def test_live_weights_are_the_modules_own_in_a_fixed_order() -> None:
    weights = LiveWeights(BASE)
    named = {**dict(BASE.named_parameters()), **dict(BASE.named_buffers())}
    assert set(weights.names) == set(named)
    assert all(tensor is named[name] for name, tensor in zip(weights.names, weights.tensors() or (), strict=True))


def test_absent_biases_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3))
    assert LiveWeights(module).names == ["0.weight", "1.weight", "1.bias"]
    assert len(LiveWeights(module).tensors() or ()) == 3


def test_weights_are_found_by_name_and_replaced_ones_are_seen() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    weights = LiveWeights(module, ["1.0.bias", "0.weight"])
    module[0].weight = nn.Parameter(torch.ones(2, 2))
    assert [id(found) for found in weights.tensors() or ()] == [id(module[1][0].bias), id(module[0].weight)]
    module[0].weight = None
    assert (weights.tensors() or [0, 0])[1] is None
    del module[0].weight
    assert weights.tensors() is None
    assert LiveWeights.nowhere().tensors() is None


def test_weights_that_a_graph_cannot_take_are_refused_by_name() -> None:
    module = nn.Linear(3, 3)
    weights = LiveWeights(module)
    forms = WeightForms(list(zip(weights.names, weights.specs(), strict=True)), torch.device("cpu"))

    def refused() -> str | None:
        return forms.refuses(weights.tensors() or [])

    with torch.no_grad():
        assert refused() is None
        module.weight.data = module.weight.data.clone()
        assert refused() is None
        module.weight.data = module.weight.data.t()
        assert refused() == "weight weight stride is (1, 3), built for (3, 1)"
        module.weight.data = torch.ones(3, 3)
        assert refused() is None
        module.weight.untyped_storage().resize_(8)
        assert refused() == "weight weight has memory for 2 of its 9 elements"
        module.weight.data = torch.ones(3, 3)
        module.bias = None
        assert refused() == "weight bias is None, built for float32[3]"


def test_tied_weights_are_checked_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    weights = LiveWeights(module)
    forms = WeightForms(list(zip(weights.names, weights.specs(), strict=True)), torch.device("cpu"))
    assert forms.refuses(weights.tensors() or []) is None
    assert forms.refuses(weights.tensors() or []) is None
