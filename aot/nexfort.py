"""The API in nexfort's own shape: `compile`, `compile_pipe`, and `restore` to undo them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

from torch import nn

from aot.capture import component
from aot.choice import choice
from aot.dispatch import OnMiss
from aot.environment import GRAPH_CACHE
from aot.errors import BadInput, Miss
from aot.fusion import fuse_qkv, split_qkv
from aot.inductor import apply_process_settings, jit
from aot.ledger import Ledger, close_ledger, open_ledger
from aot.load import attach, fall_back, forward_of, put, take_away
from aot.memory_format import to_channels_last
from aot.options import Options
from aot.target import Target
from cache_store.errors import CodedError
from cache_store.location import open_store
from cache_store.root import default_root

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P")
T = TypeVar("T")

PIPELINE_COMPONENTS = ("transformer", "unet", "vae.decoder")  # what compile_pipe compiles, where a pipeline has it
_UNDO = "_aot_undo"

OptionsLike: TypeAlias = Options | Mapping[str, Any] | str | None


def compile(module: M, *, options: OptionsLike = None, on_miss: str = "compile", backend: str = "nexfort") -> M:
    """Compile `module` in place and return it: from an artifact where `NEXFORT_GRAPH_CACHE` allows one, else with torch.compile.

    `options` is nexfort's dict or its JSON string: mode, memory_format, dynamic, options. `NEXFORT_GRAPH_CACHE` unset or `0`
    reads no artifact; `1` reads the local store; any other value is a store's location. `on_miss` says what serves a call
    that no graph serves: `compile`, `eager` or `error`. Loading an artifact runs its author's code.

    Raises BadInput for options that cannot be understood; under `on_miss="error"` Miss, here or at a call. Nothing else is
    raised for a store or artifact that is absent, refused or damaged: it is logged once and counted in `aot.stats()`.
    """
    choice(backend, known=("nexfort",), field="backend")
    parsed = Options.parse(options)
    _compile({"module": restore(module)}, parsed, on_miss)
    return module


def compile_pipe(
    pipe: P,
    *,
    options: OptionsLike = None,
    fuse_qkv_projections: bool = False,
    ignores: tuple[str, ...] = (),
    on_miss: str = "compile",
    backend: str = "nexfort",
) -> P:
    """Compile the denoiser and the VAE decoder of a diffusers pipeline in place and return the pipeline. See `compile`.

    `fuse_qkv_projections` fuses the attention projections of the denoiser first. `ignores` names components to leave alone.
    """
    choice(backend, known=("nexfort",), field="backend")
    modules = components(pipe, ignores)
    if not modules:
        raise BadInput(
            f"{type(pipe).__name__} has none of {', '.join(PIPELINE_COMPONENTS)} to compile.", remedy="use compile() on a module."
        )
    parsed = Options.parse(options)
    for module in modules.values():
        restore(module)
        if fuse_qkv_projections and fuse_qkv(module):
            _on_restore(module, partial(split_qkv, module))
    _compile(modules, parsed, on_miss)
    return pipe


def restore(compiled: T) -> T:
    """Undo `compile` or `compile_pipe` in place: forwards, fused projections, memory format. Fine where nothing was done."""
    modules = [compiled] if isinstance(compiled, nn.Module) else components(compiled, ()).values()
    for module in modules:
        take_away(module)
        for undo in reversed(module.__dict__.pop(_UNDO, [])):
            undo()
    return compiled


def components(pipe: Any, ignores: tuple[str, ...]) -> dict[str, nn.Module]:
    """What `compile_pipe` compiles of `pipe`, by path."""
    found = {}
    for path in PIPELINE_COMPONENTS:
        if getattr(pipe, path.split(".")[0], None) is not None and path not in ignores:
            found[path] = component(pipe, path)
    return found


def _compile(modules: dict[str, nn.Module], options: Options, on_miss: str) -> None:
    policy = OnMiss(choice(on_miss, known=list(OnMiss), field="on_miss"))
    ledger = open_ledger(tuple(modules))
    for module in modules.values():
        if options.memory_format == "channels_last":
            _on_restore(module, to_channels_last(module))
        _on_restore(module, partial(close_ledger, ledger))
    apply_process_settings(options.process)
    location = os.environ.get(GRAPH_CACHE, "0")
    if location in ("", "0"):
        for module in modules.values():
            put(module, jit(forward_of(module), options))
    else:
        _load(modules, location, options, policy, ledger)


def _load(modules: dict[str, nn.Module], location: str, options: Options, on_miss: OnMiss, ledger: Ledger) -> None:
    device = next((weight.device.type for module in modules.values() for weight in module.parameters()), "cpu")
    try:
        store = open_store(str(default_root(os.environ)) if location == "1" else location)
        attach(modules, store, options=options, target=Target.detect(device), on_miss=on_miss, ledger=ledger)
    except Miss:
        raise
    except CodedError as error:  # a store, device or torch that cannot be used costs a compile, not the service
        why = f"{error.code} {error.message.rstrip('.')}"
        for path, module in modules.items():
            fall_back(module, path, on_miss=on_miss, jit=partial(jit, options=options), why=why, ledger=ledger)


def _on_restore(module: nn.Module, undo: Callable[[], None]) -> None:
    module.__dict__.setdefault(_UNDO, []).append(undo)
