"""Plan: what a request comes to, once the real pipeline was asked how it calls its components."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from aot.artifact.dynamic import DynamicRange, Size, corners, fit, probes
from aot.artifact.facts import of_module, of_wish
from aot.artifact.key import Key, component_parts
from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.errors import Unsupported
from aot.machine.device import Device
from aot.machine.target import Target
from aot.model.axes import Axes, alike
from aot.model.capture import Call, block_paths, component, recording
from aot.model.fingerprint import Fingerprint
from aot.model.fusion import fuse_qkv
from aot.model.ip_adapter import live_scale
from aot.model.memory_format import to_channels_last
from aot.model.signature import Signature
from aot.request.compilation import Compilation
from aot.request.example import Example
from aot.request.options import Options
from aot.request.recipe import Bucket, Recipe
from aot.request.request import Request
from aot.request.shape import Shape

SEED = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to compile: the submodules at `paths` share a kind and are called with one signature, or one range of them."""

    component: str
    paths: tuple[str, ...]
    kind: Digest
    signature: Signature
    dtype: torch.dtype
    dynamic: DynamicRange | Axes | None = None

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
    """The pipeline, its components' calls, the units to compile and the key.

    `calls` are those that were asked for; `checks` more of them, at which a dynamic graph's outputs are compared.
    """

    pipeline: Any
    modules: dict[str, nn.Module]
    fingerprints: dict[str, Fingerprint]
    kinds: dict[Digest, KindFound]
    calls: list[Call]
    checks: list[Call]
    units: list[Unit]
    key: Key

    def sites(self) -> list[nn.Module]:
        """The submodules that the units are about."""
        found = {(unit.component, path) for unit in self.units for path in unit.paths}
        return [self.modules[name].get_submodule(path) for name, path in sorted(found)]


def prepare(recipe: Recipe, request: Request, device: Device | None = None) -> tuple[Any, dict[str, nn.Module]]:
    """The pipeline as a user would have it when calling `compile_pipe`, by default on the real device, and its components by path."""
    device = device or Device.of(request.gpu)
    torch.manual_seed(SEED)
    row = recipe.variant(request.variant)
    pipeline = recipe.pipeline(row, dtype=request.dtype, weights=request.weights, components=request.components, tensors=device.tensors)
    device.take(pipeline)
    with device.tensors():
        return pipeline, _components(recipe, request, pipeline)


def _components(recipe: Recipe, request: Request, pipeline: Any) -> dict[str, nn.Module]:
    modules = {item.path: component(pipeline, item.path) for item in recipe.pick(request.components)}
    for module in modules.values():
        if request.fuse_qkv:
            fuse_qkv(module)
        lay_out(module, request.options)
    return modules


def lay_out(module: nn.Module, options: Options) -> None:
    """Do to a component what `compile_pipe` does before it looks at it."""
    live_scale(module)
    if options.memory_format == "channels_last":
        to_channels_last(module)


def make_plan(recipe: Recipe, request: Request, device: Device | None = None) -> Plan:
    """Prepare the pipeline and capture its calls of every example asked for, by default on the real device.

    Raises what the pipeline raises.
    """
    device = device or Device.of(request.gpu)
    pipeline, modules = prepare(recipe, request, device)
    picked = {item.path: item for item in recipe.pick(request.components)}
    fingerprints = {path: fingerprint_of(module, device, path) for path, module in modules.items()}
    blocks = {path: block_paths(modules[path], item.blocks) if request.scope == "regional" else [] for path, item in picked.items()}
    kinds, kind_of = kinds_of(modules, fingerprints, blocks, device)

    def record(examples: Iterable[Example]) -> list[Call]:
        with recording(modules, blocks, device.fakes) as calls, torch.no_grad(), device.tensors():
            for example in examples:
                pipeline(**recipe.call(pipeline, example, recipe.min_steps, SEED))
        return calls

    examples = request.examples(recipe)
    calls, checks = record(examples), list[Call]()
    if request.options.dynamic:
        near = request.shapes[0]
        units = _dynamic_units(examples, {path: recipe.buckets(item) for path, item in picked.items()}, kind_of, record, near)
        sizes = {size: None for item in picked.values() for bucket in recipe.buckets(item) for size in corners(bucket, near)}
        asked = {(call.component, call.signature) for call in calls}
        checks = [
            call
            for call in record(replace(example, shape=size) for example in examples[:1] for size in sizes)
            if (call.component, call.signature) not in asked
        ]
    else:
        units = units_of([(call, inner(call)) for call in calls], kind_of)
    return Plan(pipeline, modules, fingerprints, kinds, calls, checks, units, _key(request, modules, fingerprints, units))


_Kinds: TypeAlias = dict[Digest, KindFound]
_KindOf: TypeAlias = Callable[[str, str], Digest]
_Inner: TypeAlias = list[tuple[str, Signature, DynamicRange | None]]  # of the component itself (path "") or of its blocks


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
    """The kinds among components and blocks, and which kind each is of: identical blocks are compiled once.

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
            kinds.setdefault(fingerprint.digest, KindFound(module.get_submodule(path), fingerprint, left_out))
            table[component_path, path] = fingerprint.digest
    return kinds, lambda component_path, path: table[component_path, path]


def inner(call: Call) -> _Inner:
    return [(block.path, block.signature, None) for block in call.blocks] or [("", call.signature, None)]


def units_of(calls: Iterable[tuple[Call, _Inner]], kind_of: _KindOf) -> list[Unit]:
    grouped: dict[tuple[str, Digest, Signature, torch.dtype, DynamicRange | None], dict[str, None]] = {}
    for call, inner in calls:
        for path, signature, dynamic in inner:
            grouped.setdefault((call.component, kind_of(call.component, path), signature, call.dtype, dynamic), {})[path] = None
    return [Unit(name, tuple(paths), kind, signature, dtype, dynamic) for (name, kind, signature, dtype, dynamic), paths in grouped.items()]


def by_memory(units: Iterable[Unit]) -> list[Unit]:
    """With one unit in the place of those whose calls' tensors lie alike in memory, however their strides are written."""
    grouped: dict[tuple[str, Digest, torch.dtype, Signature], list[Unit]] = {}
    for unit in units:
        grouped.setdefault((unit.component, unit.kind, unit.dtype, unit.signature.memory), []).append(unit)
    return [replace(group[0], paths=_paths(group)) for group in grouped.values()]


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


def _paths(units: Iterable[Unit]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for unit in units for path in unit.paths))


def _dynamic_units(
    examples: list[Example],
    buckets: dict[str, tuple[Bucket, ...]],
    kind_of: _KindOf,
    record: Callable[[Iterable[Example]], list[Call]],
    near: Shape,
) -> list[Unit]:
    """One unit for each component and bucket, whatever the sizes asked for; components that no size changes get plain ones."""
    found: list[tuple[Call, _Inner]] = []
    for example in dict.fromkeys(replace(example, shape=near) for example in examples):
        for bucket in {bucket: None for group in buckets.values() for bucket in group}:
            sizes = probes(bucket, near)
            runs = [record([replace(example, shape=Shape(h * bucket.divisor, w * bucket.divisor))]) for h, w in sizes]
            for calls in zip(*runs, strict=True):
                if bucket in buckets[calls[0].component]:
                    found.append((calls[0], _fitted(calls, sizes, bucket)))
    return units_of(found, kind_of)


def _fitted(calls: tuple[Call, ...], sizes: tuple[Size, ...], bucket: Bucket) -> _Inner:
    fitted: _Inner = []
    for same in zip(*map(inner, calls), strict=True):
        (path, signature, _), *_ = same
        signatures = [other for _, other, _ in same]
        varies = any(other != signature for other in signatures)
        fitted.append((path, signature, fit(signatures, sizes, bucket) if varies else None))
    return fitted


def _key(request: Request, modules: dict[str, nn.Module], fingerprints: dict[str, Fingerprint], units: list[Unit]) -> Key:
    return key_of(
        request,
        {
            "recipe": request.recipe,
            "variant": "weights" if request.weights else request.variant,
            "shapes": " ".join(map(str, request.shapes)),
            "batch": " ".join(map(str, request.batches)),
            "guidance": request.guidance,
            "frames": " ".join(map(str, request.frames)),
            "dynamic": str(request.options.dynamic).lower(),
        },
        modules,
        fingerprints,
        units,
    )


def key_of(
    request: Compilation, about: dict[str, str], modules: dict[str, nn.Module], fingerprints: dict[str, Fingerprint], units: list[Unit]
) -> Key:
    """The key of a build: `about` what was asked for, how it is compiled, and every component with the signatures served of it."""
    parts = {
        **about,
        "scope": request.scope,
        "layers": "graph cache" if request.cache_layer else "graph",
        **({"tuning": "heuristics"} if request.untuned else {}),
        **({"also": " ".join(request.also)} if request.also else {}),
        **of_wish(request.options, Target.named(request.gpu)),
    }
    for path, module in modules.items():
        signatures = sorted({str((unit.dynamic or unit.signature).digest) for unit in units if unit.component == path})
        parts |= component_parts(path, of_module(module, fingerprints[path], request.options))
        parts[f"signatures/{path}"] = f"{len(signatures)} {Digest.of(encode(signatures))}"
    return Key(parts)
