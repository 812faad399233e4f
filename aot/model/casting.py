"""Casting: modules whose weights are stored in one dtype and computed with in another: diffusers' layerwise casting.

Its hook writes the wider weights into the module before a forward, and the narrow ones after it. A graph takes the narrow ones as
inputs and widens them as it computes, so while a module is called with other weights than its own, a forward stands there that does
the same without writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any
from unittest import mock

import torch
from torch import nn

_REGISTRY = "_diffusers_hook"
_HOOK = ("diffusers.hooks.layerwise_casting", "LayerwiseCastingHook")


@dataclass(frozen=True, slots=True)
class Cast:
    """How the module at `path` was given its hook, so that it can be given it again."""

    path: str
    name: str  # in the registry
    hook: Any


def casts(module: nn.Module) -> list[Cast]:
    """The submodules whose one hook casts their weights, outermost first."""
    return [Cast(path, *found) for path, child in module.named_modules() if (found := _casting(child))]


def called_with(module: nn.Module, weights: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the module answers with these weights in the place of its own, which are not touched."""
    with _widening(module):
        return torch.func.functional_call(module, dict(weights), args, kwargs)


def take_off(module: nn.Module) -> list[Cast]:
    """Take the casting hooks off a module, whose weights stay as they are stored: with them it can be neither pickled nor copied,
    as what stands for its forward holds on to the module that it was made for."""
    found = casts(module)
    for cast in found:
        own = vars(module.get_submodule(cast.path))
        del own["forward"], own[_REGISTRY]
        cast.hook.fn_ref = None
    return found


def put_on(module: nn.Module, found: list[Cast]) -> None:
    """Give them back."""
    if found:
        from diffusers.hooks import HookRegistry

        for cast in found:
            registry = HookRegistry.check_if_exists_or_initialize(module.get_submodule(cast.path))
            with mock.patch.object(type(cast.hook), "initialize_hook", lambda _, child: child):  # the weights are stored as they should
                registry.register_hook(cast.hook, cast.name)


def _casting(module: nn.Module) -> tuple[str, Any] | None:
    """The name and hook, where nothing else is around the module's own forward."""
    registry = vars(module).get(_REGISTRY)
    if registry is None or len(registry.hooks) != 1:
        return None
    ((name, hook),) = registry.hooks.items()
    natural = isinstance(hook.fn_ref.forward, MethodType) and hook.fn_ref.forward.__func__ is type(module).forward
    return (name, hook) if natural and (type(hook).__module__, type(hook).__qualname__) == _HOOK else None


@contextmanager
def _widening(module: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for cast in casts(module):
            child = module.get_submodule(cast.path)
            stack.enter_context(mock.patch.dict(vars(child), forward=_Widened(child, cast.hook)))
        yield


class _Asked:
    """In the place of a module that a hook moves to another dtype: what it was asked for."""

    dtype: torch.dtype | None = None

    def to(self, *, dtype: torch.dtype, non_blocking: bool = False) -> None:  # noqa: ARG002
        self.dtype = dtype


class _Widened:
    """The forward of a module between what its hook does before and after, with weights of the dtype that the hook asks for."""

    def __init__(self, module: nn.Module, hook: Any) -> None:
        self._module, self._hook = module, hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        asked = _Asked()
        args, kwargs = self._hook.pre_forward(asked, *args, **kwargs)
        with ExitStack() as stack:
            for child in self._module.modules():
                for own in (child._parameters, child._buffers):
                    wide = {
                        name: weight.to(asked.dtype) for name, weight in own.items() if weight is not None and weight.is_floating_point()
                    }
                    stack.enter_context(mock.patch.dict(own, wide))
            returned = type(self._module).forward(self._module, *args, **kwargs)
        return self._hook.post_forward(_Asked(), returned)
