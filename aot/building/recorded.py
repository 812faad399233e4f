"""Recorded: the plan of a Record, and of a recipe, whose pipeline is recorded. Nothing here knows any model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from aot.artifact.golden import noise
from aot.building.plan import Plan, along_axes, by_layout, check_slots, fingerprint_of, key_of, kinds_of, lay_out, units_of
from aot.choice import choice
from aot.errors import BadInput, Unsupported
from aot.machine.device import Device
from aot.machine.sku import CPU
from aot.model.blocks import large, numbered, repeated, share
from aot.model.capture import BlockCall, Call, FakeRun, component, fake_run, in_dtype
from aot.model.fusion import fuse_qkv
from aot.model.recorder import RecordedCall
from aot.model.signature import Signature
from aot.model.slots import has_adapters, put_slots
from aot.model.tracing import mentioned, tracing
from aot.request.compilation import Compilation
from aot.request.recipe import Recipe
from aot.request.record import Record, record
from aot.request.request import Request

SEED = 0

_LEAST = 0.5  # of a component's weights that its blocks hold together: where they are less, the whole is compiled
_LEAVE_OUT = "leave it out: name the others with --components."


def plan_recorded(record: Record, request: Compilation, device: Device, *, weights: bool = False) -> Plan:
    """The units that the Record's calls come to, on `device`. The modules get noise for weights, unless theirs are those that the
    build is to use (`weights`). Raises BadInput, Unsupported."""
    for path in request.components:
        if path in record.left:
            raise Unsupported(f"{path} cannot be built: {record.left[path]}", remedy=_LEAVE_OUT)
    picked = [choice(path, known=record.modules, field="--components") for path in request.components] or list(record.modules)
    modules, left = dict[str, nn.Module](), dict(record.left)
    calls, blocks, unread = list[Call](), dict[str, list[str]](), dict[str, tuple[str, ...]]()
    for path in picked:
        module = _prepared(record.modules[path], request, device, weights=weights)
        found = [_here(call, device) for call in record.calls if call.component == path]
        try:
            blocks[path], unread[path], ran = _of_component(path, module, found, request.scope, device)
        except Unsupported as error:
            if path in request.components or len(picked) == 1:
                raise
            left[path] = error.message
        else:
            modules[path] = module
            calls += ran
    slots = _put_slots(modules, request, device)
    fingerprints = {path: fingerprint_of(module, device, path) for path, module in modules.items()}
    kinds, kind_of = kinds_of(modules, fingerprints, blocks, device, unread)
    units = by_layout(units_of(calls, kind_of, modules), copies=not request.options.dynamic)
    if request.options.dynamic:
        units = along_axes(units)
    check_slots(units, slots)
    return Plan(modules, fingerprints, kinds, calls, units, key_of(request, modules, fingerprints, units), left, slots)


def make_plan(recipe: Recipe, request: Request, device: Device | None = None, *, pipeline: Any = None) -> Plan:
    """The units that the calls of a recipe's pipeline come to, on `device`, by default the real one. There the pipeline, by default
    a new one, has its own weights, and its modules are the plan's; for a GPU that is absent it has none. Raises what the pipeline
    raises."""
    device = device or Device.of(request.gpu)
    if pipeline is None:
        pipeline, _ = prepare(recipe, request, unweighted=device.simulated)
    with record(pipeline, name=recipe.name) as found, torch.no_grad():
        for example in request.examples(recipe):
            pipeline(**recipe.call(pipeline, example, recipe.min_steps, SEED))
    paths = tuple(item.path for item in recipe.pick(request.components))
    return plan_recorded(found, replace(request, components=paths), device, weights=not device.simulated)


def prepare(recipe: Recipe, request: Request, *, unweighted: bool = False) -> tuple[Any, dict[str, nn.Module]]:
    """The pipeline as its user makes it, on the CPU, and its components by path; `unweighted`, to be recorded alone."""
    torch.manual_seed(SEED)
    row = recipe.variant(request.variant)
    pipeline = recipe.pipeline(row, dtype=request.dtype, weights=request.weights, components=request.components, unweighted=unweighted)
    modules = {item.path: component(pipeline, item.path) for item in recipe.pick(request.components)}
    if request.fuse_qkv:
        for module in modules.values():
            fuse_qkv(module)
    return pipeline, modules


def _put_slots(modules: dict[str, nn.Module], request: Compilation, device: Device) -> dict[str, list[str]]:
    """Give the components that adapters are made for their slots, where the build is to have them. Raises BadInput, Unsupported."""
    if not request.lora_rank:
        return {}
    # nobody adapts an autoencoder, whose parts have a path
    whole = {path: module for path, module in modules.items() if "." not in path}
    adapted = {path: module for path, module in whole.items() if hasattr(module, "add_adapter")} or whole
    for path, module in adapted.items():
        if has_adapters(module):
            raise Unsupported(f"{path} has adapters loaded, and is to be built with slots for any.", remedy="unload_lora_weights() first.")
    made = (lambda spec, _: spec.zeros()) if device.simulated else partial(noise, weight=True)
    with device.tensors():
        slots = {path: put_slots(module, request.lora_rank, request.lora_targets, made) for path, module in adapted.items()}
    if not any(slots.values()):
        raise BadInput("--lora-rank: no component that is compiled has a layer for adapters.", remedy="leave it out.")
    return slots


def _prepared(module: nn.Module, request: Compilation, device: Device, *, weights: bool) -> nn.Module:
    """The module on the device, as `compile_pipe` makes it before it looks at it."""
    if weights:
        module.to(device.name)
    else:
        device.fill(module, partial(noise, weight=True))
    with device.tensors():
        lay_out(module, request.options)
    return module


def _here(call: RecordedCall, device: Device) -> RecordedCall:
    """The call as the device will see it: recorded on a CPU, all of its tensors are on the device."""
    if device.type == CPU or any(spec.device != CPU for spec in call.signature.specs):
        return call
    blocks = tuple(replace(block, signature=_on(block.signature, device.type)) for block in call.blocks)
    return replace(call, signature=_on(call.signature, device.type), blocks=blocks)


def _on(signature: Signature, device: str) -> Signature:
    return Signature(signature.form, tuple(replace(spec, device=device) for spec in signature.specs))


def _of_component(
    path: str, module: nn.Module, recorded: list[RecordedCall], scope: str, device: Device
) -> tuple[list[str], tuple[str, ...], list[Call]]:
    """The blocks that are compiled in the module's place, if any; which of their numbers nothing reads; and its calls, with those
    of the blocks."""
    if any(call.blocks for call in recorded):  # glue: what is in it is compiled, whatever the scope
        called = dict.fromkeys(block.path for call in recorded for block in call.blocks)
        if not (blocks := large(module, called)):
            raise Unsupported(f"{path} reads tensors' numbers, and nothing in it is large enough to be compiled.", remedy=_LEAVE_OUT)
        return blocks, (), [_call(call, tuple(block for block in call.blocks if block.path in blocks), device) for call in recorded]
    # a part of an autoencoder is compiled whole: it is called once a picture, and its blocks differ in size
    if scope == "regional" and "." not in path:
        unread = numbered(module, _mentioned(module, recorded[0], device))
        blocks = repeated(module, unread=unread)
        if share(module, blocks) >= _LEAST:
            told_apart = tuple(name for name in unread if len({vars(module.get_submodule(block)).get(name) for block in blocks}) > 1)
            return blocks, told_apart, [_call(call, _fake_run(module, call, device, blocks).blocks, device) for call in recorded]
    return [], (), [_call(call, (), device) for call in recorded]


def _mentioned(module: nn.Module, call: RecordedCall, device: Device) -> set[str]:
    """Every name that the code which a call runs mentions."""
    with tracing() as codes:
        _fake_run(module, call, device, [])
    return {name for code, _ in codes for name in mentioned(code)}


def _fake_run(module: nn.Module, call: RecordedCall, device: Device, blocks: list[str]) -> FakeRun:
    with in_dtype(module, call.dtype), device.tensors():
        return fake_run(module, call.signature, call.signature.zeros(), blocks=blocks, fakes=device.fakes)


def _call(call: RecordedCall, blocks: tuple[BlockCall, ...], device: Device) -> Call:
    with device.tensors():
        if device.simulated:
            tensors = call.signature.zeros()
        else:
            tensors = [noise(spec, number, weight=False) for number, spec in enumerate(call.signature.specs)]
    return Call(call.component, call.signature, tensors, blocks, call.dtype, call.written)
