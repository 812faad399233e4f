"""Surroundings: the state of torch around a call that would change what its operations do, or wants to see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad

from aot.model.collector import collected_now, collects_below

_C: Any = torch._C  # private names, checked on torch 2.11.0, 2.13.0 and 2.15.0


class Surroundings(NamedTuple):
    """A call reaches a graph in none but the plain state; gradients are looked at by the tensors."""

    gradients: bool
    inference: bool
    autocast: bool
    functions: int  # modes that see every function of torch: a default device is one
    dispatch: int  # modes that see every operator: fake tensors, make_fx, flop counters
    transformed: bool  # vmap, grad, functionalize
    dual: int  # the level of forward-mode differentiation; below 0 there is none
    traced: bool  # torch.jit.trace
    disabled: bool  # torch functions of subclasses
    dtype: torch.dtype
    deterministic: bool
    collected: tuple[str, ...]  # what of its submodules a model of transformers around this one collects

    def refuses(self, module: nn.Module) -> str | None:
        """What around a call of `module` no graph can answer for, in words, or None."""
        return self.refuses_below(collects_below(module) if self.collected else frozenset())

    def refuses_below(self, collecting: frozenset[str]) -> str | None:
        """The same, for a module of whose submodules these can be collected."""
        hidden = sorted(collecting.intersection(self.collected))
        unseen = "which would not see what a graph does"
        reasons: tuple[tuple[Any, str | Callable[[], str]], ...] = (
            (self.autocast, "the call is under autocast, built without"),
            (self.functions, lambda: f"the call is under a torch function mode ({_mode(_C._get_function_stack_at)}), {unseen}"),
            (self.dispatch, lambda: f"the call is under a torch dispatch mode ({_mode(_C._get_dispatch_stack_at)}), {unseen}"),
            (self.transformed, "the call is under a functorch transform (vmap, grad), which a graph knows nothing of"),
            (self.dual >= 0, "the call is under forward-mode differentiation, and graphs have no derivatives"),
            (self.traced, "the call is traced by torch.jit, which would not see what a graph does"),
            (self.dtype is not torch.float32, f"torch's default dtype is {str(self.dtype).removeprefix('torch.')}, built under float32"),
            (self.deterministic, "deterministic algorithms are asked for, built without"),
            (hidden, lambda: f"the model around it collects {', '.join(hidden)} of its submodules, which a graph does not hand out"),
        )
        found = next((reason for holds, reason in reasons if holds), None)
        return found() if found and not isinstance(found, str) else found


def _mode(at: Any) -> str:
    """The class of the innermost mode that anybody entered."""
    return type(at(0)).__qualname__


def surroundings(device: str) -> Surroundings:
    """Those of now; `device`: the type of device whose autocast would change a result."""
    return Surroundings(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device),
        _C._len_torch_function_stack(),
        _C._len_torch_dispatch_stack(),
        _C._functorch.peek_interpreter_stack() is not None,
        forward_ad._current_level,
        _C._get_tracing_state() is not None,
        not _C._is_torch_function_enabled(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        collected_now(),
    )
