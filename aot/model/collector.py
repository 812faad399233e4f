"""Collector: how models of transformers hand out what their submodules return: by hooks that they put there themselves, at the first
call that asks for it. A graph has inside what it collected when it was traced; what is collected around it, it would not give."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

# private names of transformers, checked on 5.24.0
_MODULE = "transformers.utils.output_capturing"
_HOOK = "install_output_capuring_hook.<locals>.output_capturing_hook"
INSTALLED = "_output_capturing_hooks_installed"  # the attribute that such a model is marked with


def is_collecting_hook(hook: Any) -> bool:
    """Whether transformers itself put `hook` there: it does nothing unless the model around it collects."""
    return getattr(hook, "__module__", None) == _MODULE and getattr(hook, "__qualname__", None) == _HOOK


def outputs_of(kind: type) -> Any:
    """What transformers has noted that instances of a class can collect; None for all others."""
    module = sys.modules.get(_MODULE)
    return dict.get(module._CAN_RECORD_REGISTRY, str(kind)) if module else None


def note_outputs(module: nn.Module) -> None:
    """Note what models of transformers within `module` can collect, as making them does: unpickled ones were not made here."""
    registry = getattr(sys.modules.get(_MODULE), "_CAN_RECORD_REGISTRY", None)
    for child in module.modules():
        if registry is not None and hasattr(child, "_can_record_outputs"):
            registry[child] = child._can_record_outputs


def is_registry(value: Any) -> bool:
    """Whether it is where transformers keeps this for every class that the process has made an instance of."""
    return type(value).__module__ == _MODULE and isinstance(value, dict)


def collected_now() -> tuple[str, ...]:
    """What of its submodules the model that runs now collects, by transformers' names ("hidden_states"); empty outside of any."""
    module = sys.modules.get(_MODULE)
    return tuple(module._active_collector.get() or ()) if module else ()


def collects_below(module: nn.Module) -> frozenset[str]:
    """What is collected from the submodules of `module`, itself aside: hooks of its own run around it."""
    hooks = [hook for child in module.modules() if child is not module for hook in child._forward_hooks.values()]
    return frozenset(_key(hook) for hook in hooks if is_collecting_hook(hook))


def _key(hook: Any) -> str:
    return str(dict(zip(hook.__code__.co_freevars, hook.__closure__, strict=True))["key"].cell_contents)
