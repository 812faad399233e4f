"""Plan: what a request comes to, once the real pipeline was asked how it calls its components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from aot.capture import Call, block_paths, component, recording
from aot.facts import of_module, of_wish
from aot.fingerprint import Fingerprint
from aot.fusion import fuse_qkv
from aot.inductor import apply_process_settings
from aot.key import Key, component_parts
from aot.memory_format import to_channels_last
from aot.recipe import Component, Recipe
from aot.request import Request
from aot.signature import Signature
from aot.target import Target
from cache_store.canonical import encode
from cache_store.digest import Digest

SEED = 0


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing to compile: the submodules at `paths` share a kind and are called with one signature."""

    component: str
    paths: tuple[str, ...]
    kind: Digest
    signature: Signature

    def __str__(self) -> str:
        where = self.component if self.paths == ("",) else f"{self.component} block x{len(self.paths)}"
        return f"{where} {self.signature.specs[0] if self.signature.specs else ''}".rstrip()


@dataclass(frozen=True, slots=True)
class Plan:
    """The pipeline, its components' calls, the units to compile and the key."""

    pipeline: Any
    modules: dict[str, nn.Module]
    fingerprints: dict[str, Fingerprint]
    kinds: dict[Digest, tuple[nn.Module, Fingerprint]]  # one submodule of each kind
    calls: list[Call]
    units: list[Unit]
    key: Key

    def sites(self) -> list[nn.Module]:
        """The submodules that the units are about."""
        found = {(unit.component, path) for unit in self.units for path in unit.paths}
        return [self.modules[name].get_submodule(path) for name, path in sorted(found)]


def prepare(recipe: Recipe, request: Request) -> tuple[Any, dict[str, nn.Module]]:
    """The pipeline as a user would have it when calling `compile_pipe`, and its components by path."""
    torch.manual_seed(SEED)
    pipeline = recipe.pipeline(recipe.variant(request.variant), dtype=request.dtype, weights=request.weights)
    apply_process_settings(request.options.process)
    modules = {item.path: component(pipeline, item.path) for item in recipe.pick(request.components)}
    for module in modules.values():
        if request.fuse_qkv:
            fuse_qkv(module)
        if request.options.memory_format == "channels_last":
            to_channels_last(module)
    return pipeline, modules


def make_plan(recipe: Recipe, request: Request) -> Plan:
    """Prepare the pipeline and capture its calls at every shape asked for. Raises what the pipeline raises."""
    pipeline, modules = prepare(recipe, request)
    picked = {item.path: item for item in recipe.pick(request.components)}
    fingerprints = {path: Fingerprint.of(module) for path, module in modules.items()}
    blocks = {path: _blocks(modules[path], item, request.scope) for path, item in picked.items()}
    with recording(modules, blocks) as calls, torch.no_grad():
        for shape in request.shapes:
            pipeline(**recipe.call(pipeline, shape, recipe.min_steps, SEED))
    kinds, kind_of = _kinds(modules, fingerprints, blocks)
    units = _units(calls, kind_of, blocks)
    return Plan(pipeline, modules, fingerprints, kinds, calls, units, _key(request, modules, fingerprints, calls))


def _blocks(module: nn.Module, item: Component, scope: str) -> list[str]:
    return block_paths(module, item.blocks) if scope == "regional" else []


_Kinds: TypeAlias = dict[Digest, tuple[nn.Module, Fingerprint]]


def _kinds(
    modules: dict[str, nn.Module], fingerprints: dict[str, Fingerprint], blocks: dict[str, list[str]]
) -> tuple[_Kinds, Callable[[str, str], Digest]]:
    """The kinds among components and blocks, and which kind each is of: identical blocks are compiled once."""
    kinds: _Kinds = {}
    table: dict[tuple[str, str], Digest] = {}
    for component_path, module in modules.items():
        for path in blocks[component_path] or [""]:
            fingerprint = Fingerprint.of(module.get_submodule(path)) if path else fingerprints[component_path]
            kinds.setdefault(fingerprint.digest, (module.get_submodule(path), fingerprint))
            table[component_path, path] = fingerprint.digest
    return kinds, lambda component_path, path: table[component_path, path]


def _units(calls: list[Call], kind_of: Callable[[str, str], Digest], blocks: dict[str, list[str]]) -> list[Unit]:
    grouped: dict[tuple[str, Digest, Signature], dict[str, None]] = {}
    for call in calls:
        inner = [(block.path, block.signature) for block in call.blocks] if blocks[call.component] else [("", call.signature)]
        for path, signature in inner:
            grouped.setdefault((call.component, kind_of(call.component, path), signature), {})[path] = None
    return [Unit(name, tuple(paths), kind, signature) for (name, kind, signature), paths in grouped.items()]


def _key(request: Request, modules: dict[str, nn.Module], fingerprints: dict[str, Fingerprint], calls: list[Call]) -> Key:
    parts = {
        "recipe": request.recipe,
        "variant": "weights" if request.weights else request.variant,
        "shapes": " ".join(map(str, request.shapes)),
        "scope": request.scope,
        "layers": "graph cache" if request.cache_layer else "graph",
        **of_wish(request.options, Target.detect(request.gpu)),
    }
    for path, module in modules.items():
        signatures = sorted(str(call.signature.digest) for call in calls if call.component == path)
        parts |= component_parts(path, of_module(module, fingerprints[path]))
        parts[f"signatures/{path}"] = f"{len(signatures)} {Digest.of(encode(signatures))}"
    return Key(parts)
