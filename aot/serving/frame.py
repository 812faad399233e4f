"""Frame: the call that torch.compile is tracing while it asks a backend, and a guard of ours beside its own.

Private names of torch's tracer stay in here, checked on torch 2.11.0, 2.13.0, 2.14.1 and 2.15.0: `InstructionTranslator.current_tx`, of
its output `root_tx` and `compile_subgraph_reason`, `install_guard`, `GlobalStateSource`, and the root guard's epilogue.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import nn

from aot.errors import Unsupported
from aot.model.functions import static


@dataclass(frozen=True, slots=True)
class Frame:
    """A call of a module's forward, as it was written. `broken`: where tracing stopped within it, if it was not traced to its end."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    code: CodeType
    broken: str | None

    @classmethod
    def traced_now(cls) -> Frame:
        """The one that Dynamo is asking a backend for. Raises Unsupported where it is none of a module's forward."""
        from torch._dynamo.symbolic_convert import InstructionTranslator

        output = InstructionTranslator.current_tx().output
        root = output.root_tx
        assert root is not None  # it is taken away when the output is complete
        args, kwargs = _given(root.f_code, root.f_locals)
        module = args[0] if args else None
        if not isinstance(module, nn.Module) or _forward(module) is not root.f_code:
            raise Unsupported(f"what is traced is {root.f_code.co_qualname}, and no module's forward from its beginning.")
        reason = output.compile_subgraph_reason
        where = f"{reason.user_stack[-1].filename}:{reason.user_stack[-1].lineno}" if reason.user_stack else "a place of its own"
        return cls(module, args[1:], kwargs, root.f_code, where if reason.graph_break or reason.reason != "return_value" else None)

    def around(self) -> list[nn.Module]:
        """The modules that are being called around this one and that it is a part of, the outermost first."""
        from torch._dynamo import OptimizedModule

        found = {id(one): one for one in _callers(sys._getframe()) if one is not self.module and not isinstance(one, OptimizedModule)}
        return [one for one in reversed(found.values()) if any(child is self.module for child in one.modules())]

    def guard(self, holds: Callable[[nn.Module], bool]) -> None:
        """Let what was compiled of this frame serve only calls of modules of which `holds` is true, by all else too that Dynamo asks."""
        from torch._dynamo.guards import install_guard
        from torch._dynamo.source import GlobalStateSource

        code = self.code

        def still(values: Mapping[str, Any]) -> bool:
            return holds(_given(code, values)[0][0])

        def create(builder: Any, _: Any) -> None:
            # the last to be looked at: at the root, for below a module Dynamo skips what its attributes alone cannot have changed
            builder.guard_manager.root.add_epilogue_lambda_guard(still, ["aot: the module is what its graph was built from"], None)

        install_guard(GlobalStateSource().make_guard(create))


def _given(code: CodeType, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a function of this code was called with, by place and by name. `values`: its locals at its beginning."""
    names = iter(code.co_varnames)
    placed = tuple(values[next(names)] for _ in range(code.co_argcount))
    named = {name: values[name] for name in (next(names) for _ in range(code.co_kwonlyargcount))}
    more = values[next(names)] if code.co_flags & _VARARGS else ()
    return (*placed, *more), {**named, **(values[next(names)] if code.co_flags & _VARKEYWORDS else {})}


_VARARGS, _VARKEYWORDS = 0x04, 0x08  # of code.co_flags, as `inspect` has them


def _forward(module: nn.Module) -> Any:
    return getattr(static(type(module), "forward"), "__code__", None)


def _callers(frame: FrameType | None) -> Iterator[nn.Module]:
    while frame is not None:
        if isinstance(one := frame.f_locals.get("self"), nn.Module):
            yield one
        frame = frame.f_back
