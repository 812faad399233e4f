import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from aot.model.fingerprint import Fingerprint
from aot.model.weights import LiveWeights
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
    "class": (_set("transformer_blocks.1.ff", "forward2", None), "forward2"),
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


def test_a_change_of_the_source_moves_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for text in ("1", "2"):
        (tmp_path / "a_model.py").write_text(
            f"import torch\nclass Model(torch.nn.Module):\n    def forward(self, x):\n        return x + {text}\n"
        )
        sys.modules.pop("a_model", None)
        importlib.invalidate_caches()
        import aot.model.fingerprint

        aot.model.fingerprint._file.cache_clear()
        prints.append(Fingerprint.of(importlib.import_module("a_model").Model()))
    assert prints[0].differs(prints[1]) == "the modeling source differs: diffusers, or the class itself, was changed since"


def test_live_weights_are_the_modules_own_in_a_fixed_order() -> None:
    weights = LiveWeights(BASE)
    named = {**dict(BASE.named_parameters()), **dict(BASE.named_buffers())}
    assert set(weights.names) == set(named)
    assert all(tensor is named[name] for name, tensor in zip(weights.names, weights.tensors() or (), strict=True))


def test_absent_biases_are_left_out() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3))
    assert LiveWeights(module).names == ["0.weight", "1.weight", "1.bias"]
    weights = LiveWeights(module)
    assert len(weights.tensors() or ()) == 3
    module[0].bias = nn.Parameter(torch.zeros(2))
    assert weights.tensors() is None


def test_a_changed_tree_is_noticed_and_a_replaced_weight_is_served() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    weights = LiveWeights(module)
    module[0].weight = nn.Parameter(torch.ones(2, 2))
    assert (weights.tensors() or [None])[0] is module[0].weight
    inner, module[1][0] = module[1][0], nn.Linear(2, 2)
    assert weights.tensors() is None
    module[1][0] = inner
    assert weights.tensors() is not None
    module[0].add_module("lora", nn.Linear(2, 2))
    assert weights.tensors() is None
    del module[0].lora
    assert weights.tensors() is not None
    del module[0].bias
    assert weights.tensors() is None
    assert LiveWeights.unseen().tensors() is None
