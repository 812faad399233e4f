"""Plan: what a request comes to, once it is known how the pipeline calls its components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TypeAlias

import torch
from torch import nn

from aot.artifact.facts import of_module, of_wish
from aot.artifact.key import Key, component_parts
from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.errors import BadInput, Unsupported
from aot.machine.device import Device
from aot.machine.target import Target
from aot.model.axes import Axes, alike
from aot.model.blocks import share
from aot.model.capture import Call, dtype_of
from aot.model.fingerprint import Fingerprint
from aot.model.ip_adapter import live_scale
from aot.model.memory_format import to_channels_last
from aot.model.signature import Signature
from aot.model.slots import is_slotted
from aot.request.compilation import Compilation
from aot.request.options import Options


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to compile: the submodules at `paths` share a kind and are called with one signature, or along axes.

    `others` are signatures of calls whose tensors lie otherwise in memory: the graph serves them by way of copies, unless it writes
    to what it is given.
    """

    component: str
    paths: tuple[str, ...]
    kind: Digest
    signature: Signature
    dtype: torch.dtype
    dynamic: Axes | None = None
    others: tuple[Signature, ...] = ()

    def alone(self, signature: Signature) -> Unit:
        """That of one of its calls by itself."""
        return replace(self, signature=signature, dynamic=None, others=())

    def __str__(self) -> str:
        where = self.component if self.paths == ("",) else f"{self.component} block x{len(self.paths)}"
        return f"{where} {str(self.dynamic or self.signature).partition(' ')[0]}".rstrip()


@dataclass(frozen=True, slots=True)
class KindFound:
    """One submodule of a kind; the fingerprint that all of them share, without the attributes `unread`."""

    module: nn.Module
    fingerprint: Fingerprint
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The components, their calls, the units to compile and the key; `left`, by component, why it is not compiled."""

    modules: dict[str, nn.Module]
    fingerprints: dict[str, Fingerprint]
    kinds: dict[Digest, KindFound]
    calls: list[Call]
    units: list[Unit]
    key: Key
    left: Mapping[str, str] = field(default_factory=dict)
    slots: Mapping[str, list[str]] = field(default_factory=dict)  # by component, the layers that adapters have room in

    def covered(self) -> dict[str, float]:
        """What of each component's weights is in what is compiled: all else of it runs eagerly."""
        paths = {name: {path for unit in self.units if unit.component == name for path in unit.paths} for name in self.modules}
        return {name: round(share(self.modules[name], found), 3) for name, found in paths.items()}

    def apart(self) -> Plan:
        """With a unit for each call in the place of those along axes."""
        units = [map(unit.alone, unit.dynamic.signatures) if unit.dynamic else (unit,) for unit in self.units]
        return replace(self, units=list(chain.from_iterable(units)))

    def sites(self) -> list[nn.Module]:
        """The submodules that the units are about."""
        found = {(unit.component, path) for unit in self.units for path in unit.paths}
        return [self.modules[name].get_submodule(path) for name, path in sorted(found)]


def lay_out(module: nn.Module, options: Options) -> None:
    """Do to a component what `compile_pipe` does before it looks at it."""
    live_scale(module)
    if options.memory_format == "channels_last":
        to_channels_last(module)


_Kinds: TypeAlias = dict[Digest, KindFound]
_KindOf: TypeAlias = Callable[[str, str], Digest]


def fingerprint_of(module: nn.Module, device: Device, name: str) -> Fingerprint:
    """Raises Unsupported where something of the module has no exact description: nobody could tell later whether it is the same."""
    found = Fingerprint.of(module, fakes=device.fakes is not None)
    if found.unknown:
        raise Unsupported(
            f"{name} cannot be built: {found.unknown}", remedy="take it away before building; what it does is not in a graph."
        )
    return found


def kinds_of(
    modules: dict[str, nn.Module],
    fingerprints: dict[str, Fingerprint],
    blocks: dict[str, list[str]],
    device: Device,
    unread: Mapping[str, tuple[str, ...]] = {},
) -> tuple[_Kinds, _KindOf]:
    """The kinds among components and blocks, and which kind each is of: identical blocks are compiled once, from the one that has
    the most room for adapters.

    `unread`, by component: attributes of its blocks that none of their code reads.
    """
    kinds: _Kinds = {}
    table: dict[tuple[str, str], Digest] = {}
    for component_path, module in modules.items():
        for path in blocks[component_path] or [""]:
            fingerprint, left_out = fingerprints[component_path], tuple[str, ...]()
            if path:
                left_out = unread.get(component_path, ())
                fingerprint = fingerprint_of(module.get_submodule(path), device, f"{component_path}.{path}").without(left_out)
            found, known = KindFound(module.get_submodule(path), fingerprint, left_out), kinds.get(fingerprint.digest)
            if known is None or _room(found.module) > _room(known.module):
                kinds[fingerprint.digest] = found
            table[component_path, path] = fingerprint.digest
    return kinds, lambda component_path, path: table[component_path, path]


def _room(module: nn.Module) -> int:
    """How many of its layers have slots for adapters."""
    return sum(map(is_slotted, module.modules()))


def units_of(calls: Iterable[Call], kind_of: _KindOf, modules: Mapping[str, nn.Module]) -> list[Unit]:
    """One for each kind and signature: of the blocks that a call comes to, or of the component itself, of `modules`."""
    grouped: dict[tuple[str, Digest, Signature, torch.dtype], dict[str, None]] = {}
    for call in calls:
        for path, signature in [(block.path, block.signature) for block in call.blocks] or [("", call.signature)]:
            dtype = _dtype(modules[call.component], path, call.dtype)
            grouped.setdefault((call.component, kind_of(call.component, path), signature, dtype), {})[path] = None
    return [Unit(name, tuple(paths), kind, signature, dtype) for (name, kind, signature, dtype), paths in grouped.items()]


def _dtype(module: nn.Module, path: str, called: torch.dtype) -> torch.dtype:
    """That of the first weight of a block, in a component that is `called` in a dtype: its own, unless the component was brought to
    another for the call. Some weights of a model are kept in float32, or stored in eight bits."""
    return dtype_of(module.get_submodule(path)) if path and called == dtype_of(module) else called


def by_layout(units: Iterable[Unit], *, copies: bool) -> list[Unit]:
    """With one unit in the place of those whose calls' tensors lie alike in memory, however their strides are written; with `copies`,
    of those that differ in how they lie: that of most paths, where several have as many the plainest."""
    found: list[Unit] = []
    for unit in sorted(units, key=lambda unit: (len(unit.paths), _plain(unit.signature)), reverse=True):
        same = (place for place, known in enumerate(found) if _serves(known, unit, copies=copies))
        if (place := next(same, None)) is None:
            found.append(unit)
            continue
        known = found[place]
        differs = unit.signature.memory != known.signature.memory
        found[place] = replace(known, paths=_paths([known, unit]), others=(*known.others, *([unit.signature] if differs else [])))
    return found


def _serves(known: Unit, unit: Unit, *, copies: bool) -> bool:
    if (known.component, known.kind, known.dtype) != (unit.component, unit.kind, unit.dtype):
        return False
    return known.signature.lies_like(unit.signature) if copies else known.signature.memory == unit.signature.memory


def _plain(signature: Signature) -> int:
    """How many of its tensors lie row by row."""
    return sum(list(spec.stride) == sorted(spec.stride, reverse=True) for spec in signature.specs)


def along_axes(units: Iterable[Unit]) -> list[Unit]:
    """With one unit in the place of those whose calls differ in sizes alone."""
    grouped: dict[tuple[str, Digest, torch.dtype], list[Unit]] = {}
    for unit in units:
        grouped.setdefault((unit.component, unit.kind, unit.dtype), []).append(unit)
    return [joined for group in grouped.values() for joined in _joined(group)]


def _joined(group: list[Unit]) -> Iterator[Unit]:
    for signatures in alike(unit.signature for unit in group):
        of = [unit for unit in group if unit.signature in signatures]
        if len(of) == 1:
            yield of[0]
        else:
            axes = Axes(signatures)
            yield replace(of[0], paths=_paths(of), signature=axes.traced, dynamic=axes)


def check_slots(units: Iterable[Unit], slots: Mapping[str, list[str]]) -> None:
    """Raises BadInput where submodules that share a graph were given slots that no one of them has all of.

    Where one has, the graph is traced from it (`kinds_of`): the others' layers that were given none have room too.
    """
    shared: dict[Digest, dict[str, set[str]]] = {}
    for unit in units:
        for path in unit.paths:
            prefix = f"{path}." if path else ""
            own = {found.removeprefix(prefix) for found in slots.get(unit.component, ()) if found.startswith(prefix)}
            shared.setdefault(unit.kind, {})[f"{unit.component}.{path}"] = own
    for given in shared.values():
        roomiest = max(given, key=lambda where: len(given[where]))
        if odd := next((where for where in given if not given[where] <= given[roomiest]), None):
            raise BadInput(
                f"--lora-targets gives {roomiest} and {odd} different slots, and they share a graph.",
                remedy="name layers by the ends of their paths, which are the same in both.",
            )


def _paths(units: Iterable[Unit]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for unit in units for path in unit.paths))


def key_of(request: Compilation, modules: dict[str, nn.Module], fingerprints: dict[str, Fingerprint], units: list[Unit]) -> Key:
    """The key of a build: what was asked for, how it is compiled, and every component with the signatures served of it."""
    parts = {
        **request.about(),
        "scope": request.scope,
        "layers": "graph cache" if request.cache_layer else "graph",
        **({"tuning": "heuristics"} if request.untuned else {}),
        **({"also": " ".join(request.also)} if request.also else {}),
        **({"layout": request.layout} if request.layout else {}),
        **({"lora": f"rank {request.lora_rank} {','.join(request.lora_targets)}".rstrip()} if request.lora_rank else {}),
        **of_wish(request.options, Target.named(request.gpu)),
    }
    for path, module in modules.items():
        asked = [one for unit in units if unit.component == path for one in (unit.dynamic or unit.signature, *unit.others)]
        signatures = sorted({str(one.digest) for one in asked})
        parts |= component_parts(path, of_module(module, fingerprints[path], request.options))
        parts[f"signatures/{path}"] = f"{len(signatures)} {Digest.of(encode(signatures))}"
    return Key(parts)
