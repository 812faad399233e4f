"""Backend: `torch.compile(model, backend="aot")`. An artifact's graph where one fits what Dynamo has traced, else Inductor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from aot.artifact.ledger import Ledger
from aot.choice import choice
from aot.compiler.inductor import compile_traced, jit_arguments
from aot.environment import GRAPH_CACHE
from aot.errors import BadInput, Unsupported
from aot.machine.target import Allow
from aot.model.collector import collects_below
from aot.model.convention import Convention
from aot.model.fingerprint import HOOKS
from aot.model.functions import static
from aot.model.signature import Signature
from aot.model.slots import has_adapters
from aot.model.weights import LiveWeights
from aot.request.options import Options
from aot.serving.dispatch import GRADIENT, OnMiss
from aot.serving.frame import Frame
from aot.serving.jit import rescued, say_given_up
from aot.serving.loaded import Asked, Loaded, load
from aot.serving.sealed import Part
from aot.serving.substitute import Answer, Places, Substitute, as_traced, found_for
from aot.serving.surroundings import surroundings

_OURS = ("on_miss", "allow", "store")


def aot_backend(
    traced: fx.GraphModule, inputs: list[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What torch.compile calls with each graph that Dynamo has traced.

    `options` are those of `aot.compile` (mode, memory_format, options), and `on_miss`, `allow`, and `store`: a location in the place of
    what `NEXFORT_GRAPH_CACHE` says. Raises BadInput for what cannot be understood, Miss under `on_miss="error"`; Dynamo wraps both in an
    error of its own.
    """
    asked = _asked(mode, options or {})
    answer = Answer("a call", asked.on_miss, Ledger(), as_traced(traced.forward), partial(_inductor, traced, inputs, asked.options))
    try:
        frame = Frame.traced_now()
    except Unsupported as error:
        return answer.instead(error.message)
    answer.component = type(frame.module).__name__
    loaded, part = _found(frame, asked)
    answer.ledger = loaded.ledger
    try:
        if part is None:
            raise Unsupported(loaded.why or "its artifact has no graph of its own for it")
        places, reason = _places(inputs, frame, part)
    except Unsupported as error:
        frame.guard(partial(_hooked, _hooks(frame.module)))
        return answer.instead(error.message)
    frame.guard(part.fits)
    later = replace(answer, compiled=partial(_again, traced, asked.options))
    if reason:  # of this size, and others may come by the same trace
        compiled = answer.instead(reason)
        later = replace(answer, compiled=lambda: compiled)
    return Substitute(part, places, later, device=_device(frame.module), mode=asked.options.mode)


def _asked(mode: str | None, options: Mapping[str, Any]) -> Asked:
    ours = {name: value for name, value in options.items() if name in _OURS}
    given = {name: value for name, value in options.items() if name not in _OURS}
    if mode and given.setdefault("mode", mode) != mode:
        raise BadInput(f"mode is {mode!r}, and {given['mode']!r} in the options.", remedy="give it once.")
    allow = frozenset(Allow(choice(word, known=list(Allow), field="allow")) for word in ours.get("allow", ()))
    on_miss = OnMiss(choice(ours.get("on_miss", OnMiss.COMPILE), known=list(OnMiss), field="on_miss"))
    return Asked(Options.parse(given), on_miss, allow, ours.get("store") or os.environ.get(GRAPH_CACHE, "0"))


def _found(frame: Frame, asked: Asked) -> tuple[Loaded, Part | None]:
    """The graphs for the frame's module: an artifact's of it, else of what it is a part of and that is being called."""
    around = frame.around()
    for component in (frame.module, *around):
        loaded = load(component, asked)
        if part := loaded.of(component, frame.module):
            loaded.tell(component)
            return loaded, part
    outermost = around[0] if around else frame.module
    loaded = load(outermost, asked)
    loaded.tell(outermost)
    return loaded, None


def _places(inputs: list[Any], frame: Frame, part: Part) -> tuple[Places, str]:
    """Where a graph finds its inputs among those of what was traced, and why none serves this very size. Raises Unsupported where none
    can serve what was traced."""
    module = frame.module
    if frame.broken:
        raise Unsupported(f"its forward is traced in pieces, the first ends at {frame.broken}")
    if has_adapters(module):
        raise Unsupported("it has LoRA adapters, for which compile_pipe alone has room")
    weights = LiveWeights(module, [name for name, _ in part.kind.weights]).tensors()
    reason = part.differs(module) or surroundings(_device(module)).refuses(module)
    if reason or weights is None:
        raise Unsupported(reason or "its weights are not those its graphs were built for")
    forward = static(type(module), "forward").__get__(module, type(module))
    signature, tensors = Signature.of(*Convention(forward).canonical(frame.args, frame.kwargs))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*weights, *tensors)):
        raise Unsupported(GRADIENT)
    places, found = replace(Places.of(inputs, weights, signature, tensors), collecting=collects_below(module)), found_for(part, signature)
    reason = found if isinstance(found, str) else ""
    if reason and places.fixed:
        raise Unsupported(reason)
    return places, reason


def _device(module: nn.Module) -> str:
    return next((weight.device.type for weight in module.parameters()), "cpu")


def _hooks(module: nn.Module) -> list[tuple[int, Any]]:
    """The hooks of a module's submodules, by their places: a part of what is traced, and none that Dynamo guards."""
    below = enumerate(child for child in module.modules() if child is not module)
    return [(place, hook) for place, child in below for kind in HOOKS for hook in vars(child)[kind].values()]


def _hooked(hooks: list[tuple[int, Any]], module: nn.Module) -> bool:
    return _hooks(module) == hooks


def _inductor(traced: fx.GraphModule, inputs: list[Any], options: Options) -> Callable[..., Any]:
    """What Inductor makes of it while Dynamo waits; the traced graph itself where there is no compiler."""
    try:
        return compile_traced(traced, inputs, options)
    except (OSError, RuntimeError) as error:
        say_given_up(error)
        return as_traced(traced.forward)


def _again(traced: fx.GraphModule, options: Options) -> Callable[..., Any]:
    """What Inductor makes of it later, for each size by itself."""
    return rescued(lambda: torch.compile(traced, **{**jit_arguments(options), "dynamic": False}), as_traced(traced.forward))
