"""Adapters: what peft has put into a served module, brought into the slots of its graphs, and whether it changed since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter, getitem
from threading import Lock
from typing import Any, TypeAlias

import torch
from torch import nn

from aot.errors import Unsupported
from aot.model.fingerprint import HOOKS
from aot.model.slots import SLOTS, Slotted, adapter_class, adapters, is_slotted

_FUSE = "call fuse_lora() and unload_lora_weights()"
_BUILD = f"build with a larger --lora-rank or more --lora-targets, or {_FUSE}"


class Slots:
    """The slots of one graph. `tensors` are its inputs, in order; `refuses()` brings what adapters now are into them, or says why they
    have no room.

    Their numbers are brought anew at each call, by two operations for all layers: what is written to a tensor by way of `.data`, as
    peft's own hot-swap does, is counted by nobody, and copying costs no more than comparing would. Of a module that itself has slots,
    as a build's has, they are its own.
    """

    def __init__(self, module: nn.Module, slotted: Slotted, device: torch.device) -> None:
        self._module = module
        self._lock = Lock()
        self._looked: tuple[object, _Seen, _Copies | str] | None = None
        paths = [name.rpartition(".")[0] for name, _ in slotted[::2]]
        self._places: dict[str, int] = {}
        if is_slotted(module.get_submodule(paths[0])):
            self.tensors = [getattr(module.get_submodule(path), name) for path in paths for name in SLOTS]
            return
        self._places = {path: 2 * place for place, path in enumerate(paths)}
        with torch.inference_mode(False):  # written to under any mode
            self.tensors = [spec.zeros().to(device) for _, spec in slotted]

    def refuses(self, structure: object) -> str | None:
        """Why the adapters that are in the module now have no room in the slots, in words; None once they are in them.

        `structure` is the same object for as long as no adapter was put around a layer or taken away.
        """
        looked = self._looked
        if looked is None or looked[0] is not structure or not looked[1].holds():
            with self._lock:
                looked = self._looked = structure, *self._look()
        _, _, copies = looked
        if isinstance(copies, str):
            return copies
        copies.make()
        return None

    def _look(self) -> tuple[_Seen, _Copies | str]:
        layers = adapters(self._module)
        seen = _Seen(list(layers.values()))
        try:
            found = {path: low for path, layer in layers.items() if (low := list(_low_ranks(path, layer)))}
            return seen, self._placed(found)
        except Unsupported as error:
            return seen, error.message

    def _placed(self, found: dict[str, list[_LowRank]]) -> _Copies:
        """Where in the slots what is `found` goes. Raises Unsupported for what has no room."""
        if homeless := [path for path in found if path not in self._places]:
            some = f"{len(homeless)} adapted layers have no slot, the first is" if len(homeless) > 1 else "an adapted layer has no slot,"
            raise Unsupported(f"{some} {homeless[0]} ({_BUILD})")
        copies = _Copies()
        for path, place in self._places.items():
            slot_a, slot_b = self.tensors[place : place + 2]
            used = 0
            for a, b, scale in found.get(path, ()):
                end = used + a.shape[0]
                copies.add(a, slot_a[used:end], b, slot_b[:, used:end], scale)
                used = end
            if used > (built := slot_a.shape[0]):
                raise Unsupported(f"the adapters of {path} have rank {used}, built for {built} ({_BUILD})")
            with torch.no_grad():
                slot_a[used:].zero_()  # of A too: 0 * inf is no zero
                slot_b[:, used:].zero_()
        return copies


@dataclass(slots=True)
class _Copies:
    """What goes where in the slots, and by what B is multiplied."""

    a: list[torch.Tensor] = field(default_factory=list)
    into_a: list[torch.Tensor] = field(default_factory=list)
    b: list[torch.Tensor] = field(default_factory=list)
    into_b: list[torch.Tensor] = field(default_factory=list)
    scales: list[Any] = field(default_factory=list)  # numbers, or tensors of one

    def add(self, a: torch.Tensor, into_a: torch.Tensor, b: torch.Tensor, into_b: torch.Tensor, scale: Any) -> None:
        self.a.append(a)
        self.into_a.append(into_a)
        self.b.append(b)
        self.into_b.append(into_b)
        self.scales.append(scale)

    def make(self) -> None:
        if not self.a:
            return
        with torch.no_grad():
            torch._foreach_copy_(self.into_a, self.a)
            if any(isinstance(scale, torch.Tensor) for scale in self.scales):
                scaled = tuple(b * scale for b, scale in zip(self.b, self.scales, strict=True))
            else:
                scaled = torch._foreach_mul(self.b, self.scales)
            torch._foreach_copy_(self.into_b, scaled)


_LowRank: TypeAlias = tuple[torch.Tensor, torch.Tensor, Any]


def _low_ranks(path: str, layer: Any) -> Iterator[_LowRank]:
    """A, B and the factor of each adapter that a layer of peft adds now. Raises Unsupported for one that adds something else."""
    _check(path, layer)
    if layer.disable_adapters and layer.merged:
        raise Unsupported(f"the adapters of {path} are merged and disabled: the next call takes them out of the weights")
    if layer.disable_adapters or layer.merged:  # in the weights, and the layer adds nothing
        return
    for name in layer.active_adapters:
        if name in layer.lora_A:
            _check_plain(path, name, layer)
            yield layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        elif name in getattr(layer, "lora_embedding_A", ()):
            raise Unsupported(f"the adapter {name!r} of {path} is of an embedding")


def _check_plain(path: str, name: str, layer: Any) -> None:
    """Raises Unsupported for an adapter that adds something else than s B(A x)."""
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if name in getattr(layer, "lora_variant", ()) or getattr(layer, "use_dora", {}).get(name):
        raise Unsupported(f"the adapter {name!r} of {path} is no plain LoRA (DoRA or another variant; {_FUSE})")
    if odd := next((type(part) for part in (a, b) if type(part) not in (nn.Linear, nn.Conv2d)), None):
        raise Unsupported(f"the adapter {name!r} of {path} has a {odd.__name__}, which no slot can stand for")
    if a.bias is not None or b.bias is not None:
        raise Unsupported(f"the adapter {name!r} of {path} has a bias ({_FUSE})")
    if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p:
        raise Unsupported(f"the adapter {name!r} of {path} is in training, with dropout")


def _check(path: str, layer: Any) -> None:
    """Raises Unsupported for a layer that computes otherwise than peft's own for linear layers and convolutions do."""
    owner, parts = next(kind for kind in type(layer).__mro__ if "forward" in vars(kind)), list(_parts(layer))
    home = adapter_class()
    assert home is not None
    if owner.__module__ != home.__module__ or owner.__name__ not in ("Linear", "_ConvNd"):
        raise Unsupported(f"the adapters of {path} compute as {owner.__module__}.{owner.__name__} does, which no slot can")
    code = owner.forward.__code__  # type: ignore[attr-defined]
    if not code.co_filename.endswith("peft/tuners/lora/layer.py"):
        raise Unsupported(f"the adapters of {path} compute by code that was put in the place of peft's ({code.co_qualname})")
    if patched := next((part for part in parts if "forward" in vars(part)), None):
        raise Unsupported(f"the adapters of {path} have a forward of their own, of a {type(patched).__name__}, which no graph would run")
    if hooked := next((part for part in parts if any(vars(part)[kind] for kind in HOOKS)), None):
        raise Unsupported(f"the adapters of {path} have a hook, on a {type(hooked).__name__}, which no graph would run")


def _parts(layer: Any) -> Iterator[nn.Module]:
    """A layer of peft and what it keeps, without the layer that it was put around."""
    yield layer
    for name, child in layer._modules.items():
        if name != "base_layer" and child is not None:
            yield from child.modules()


class _Seen:
    """All that the answer of layers of peft depends on but the numbers in their tensors; `holds()` looks again, by passes in C."""

    __slots__ = ("_codes", "_copies", "_dicts", "_ids", "_items", "_keys", "_kinds", "_owners", "_sequences", "_shapes")

    def __init__(self, layers: list[Any]) -> None:
        parts = [part for layer in layers for part in _parts(layer)]
        tables = [table for layer in layers for table in vars(layer).values() if type(table) is dict]
        self._dicts = [*map(vars, parts), *tables, *(vars(part)[kind] for part in parts for kind in HOOKS)]
        self._copies = [dict(found) for found in self._dicts]
        self._sequences = [found for layer in layers for found in vars(layer).values() if type(found) is list]
        self._items = [list(found) for found in self._sequences]
        self._kinds = list({type(part) for part in parts})
        self._codes = list(map(_code, self._kinds))
        weights = [(part._parameters, name) for part in parts for name, weight in part._parameters.items() if weight is not None]
        self._owners, self._keys = [owner for owner, _ in weights], [name for _, name in weights]
        tensors = self._tensors()
        self._ids, self._shapes = list(map(id, tensors)), list(map(_shape, tensors))

    def _tensors(self) -> list[Any]:
        return list(map(getitem, self._owners, self._keys))

    def holds(self) -> bool:
        try:
            tensors = self._tensors()
            return (
                list(map(id, tensors)) == self._ids
                and list(map(_shape, tensors)) == self._shapes
                and self._dicts == self._copies
                and self._sequences == self._items
                and list(map(_code, self._kinds)) == self._codes
            )
        except Exception:  # noqa: BLE001 - whatever a changed thing answers when it is compared is no equality
            return False


_code = attrgetter("forward.__code__")
_shape = attrgetter("shape")
