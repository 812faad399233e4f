"""Stand-in: what is put in the place of a module's forward, and how it leaves again whatever was wrapped around it since."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import nn

from aot.compiler.inductor import reset_code
from aot.model.fingerprint import is_natural
from aot.model.functions import static

_HOOK, _BELOW_HOOK = "_hf_hook", "_old_forward"  # accelerate's offloading, and where it keeps the forward that computes
_standing: WeakSet[StandIn] = WeakSet()


class StandIn:
    """Called in the place of `module.forward`. `plain` is what it stands for: the instance's own of before, else the class' of now.

    Pickled, and in a copy that cannot be served, it is that forward.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before: Callable[..., Any] | None = None
        self.retired = False  # something of the user's still calls it: it is plain then

    @property
    def plain(self) -> Callable[..., Any]:
        if self._before is not None:
            return self._before
        forward = static(type(self._module), "forward")
        found: Callable[..., Any] = forward.__get__(self._module, type(self._module)) if hasattr(forward, "__get__") else forward
        return found

    def traced(self, *args: Any, **kwargs: Any) -> Any:
        """A call of `plain` as every torch's compiler can follow it: 2.11's knows no binding of a function that is not its own."""
        forward = static(type(self._module), "forward")
        if self._before is None and isinstance(forward, types.FunctionType):
            return forward(self._module, *args, **kwargs)
        return self.plain(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """That of the forward it stands in for: pipelines look at it to learn which arguments a model takes."""
        return inspect.signature(self.plain)

    def __getattr__(self, name: str) -> Any:
        """What else is asked of a forward (its code, its name) is that of the one it stands for."""
        if not name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.plain, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.plain(*args, **kwargs)

    def __reduce__(self) -> Any:
        return (_same, (self._before,)) if self._before is not None else (getattr, (self._module, "forward"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied module has one of its own."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        memo[id(self)] = twin
        twin._module = copy.deepcopy(self._module, memo)
        twin._before = copy.deepcopy(self._before, memo)
        _standing.add(twin)
        return twin

    def put(self) -> None:
        """Take the place of the module's forward that computes; `take_away` undoes it."""
        own = vars(self._module)
        slot = _slot(own)
        before = own.get(slot)
        self._before = None if is_natural(self._module, "forward", before) else before
        own[slot] = self
        _standing.add(self)

    def leave(self) -> None:
        """Give the place back; where something was wrapped around it, stay there and be plain."""
        own, self.retired = vars(self._module), True
        for slot in ("forward", _BELOW_HOOK):
            if own.get(slot) is not self:
                continue
            if slot == _BELOW_HOOK:
                own[slot] = self.plain
            elif self._before is None:
                del own[slot]
            else:
                own[slot] = self._before
        _standing.discard(self)


def _slot(own: dict[str, Any]) -> str:
    return _BELOW_HOOK if _HOOK in own else "forward"


def _same(value: Any) -> Any:
    return value


def standing(module: nn.Module) -> list[StandIn]:
    """What stands for `module` and its submodules."""
    children = {id(child) for child in module.modules()}
    return [found for found in _standing if id(found._module) in children]


def take_away(module: nn.Module) -> None:
    """Give `module` and its submodules their forwards back. Fine where nothing stands."""
    for found in standing(module):
        found.leave()


class Compiled(StandIn):
    """Stands for a forward by way of a compiler; compiled anew when the forward has become another."""

    def __init__(self, module: nn.Module, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        super().__init__(module)
        self._compiler = compiler
        self._compiled: tuple[Any, Callable[..., Any]] | None = None

    def forget(self) -> None:
        """Compile anew at the next call. torch's own guards leave out hooks, and what is patched on classes: a model that is known
        to have changed must not be answered for by what was compiled of it before."""
        if self._compiled is not None:
            reset_code(self._compiled[0])
            self._compiled = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.retired or torch.compiler.is_compiling():
            return self.traced(*args, **kwargs)
        plain = self.plain
        ran = getattr(plain, "__func__", plain)
        if self._compiled is None or self._compiled[0] is not ran:
            self._compiled = ran, self._compiler(plain)
        return self._compiled[1](*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = super().__deepcopy__(memo)
        twin._compiled = None  # it computes with the other's weights
        return twin
