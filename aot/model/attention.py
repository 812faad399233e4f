"""Attention: which of diffusers' backends computes it: a model's own choice, else the one that is active in the process.

`set_attention_backend`, `attention_backend(...)` and `DIFFUSERS_ATTN_BACKEND` come to these two. Names of diffusers 0.42.1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from aot.choice import choice
from aot.errors import Unsupported

# what `native` leaves to torch, and these do not
_OF_TORCH = {
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_math": SDPBackend.MATH,
}
NATIVE = "native"  # torch's own, and the default
_DISPATCH, _OWN, _VARIABLE = "diffusers.models.attention_dispatch", "_attention_backend", "DIFFUSERS_ATTN_BACKEND"


def active() -> str:
    """The backend that is active in this process, where a model has none of its own. Imports nothing."""
    dispatch = sys.modules.get(_DISPATCH)
    return _named(dispatch._AttentionBackendRegistry._active_backend) if dispatch else os.environ.get(_VARIABLE, NATIVE)


def backends(module: nn.Module) -> tuple[str, ...]:
    """Those that attention in `module` goes to; none where it has no attention that could choose."""
    processors = [child.processor for child in module.modules() if hasattr(getattr(child, "processor", None), _OWN)]
    return tuple(sorted({_named(own) if (own := getattr(processor, _OWN)) else active() for processor in processors}))


def others(found: Collection[str]) -> list[str]:
    """What is to be told of these backends: nothing where they are torch's own alone."""
    return sorted(found) if {*found} - {NATIVE} else []


@contextmanager
def lowered(module: nn.Module) -> Iterator[None]:
    """Within, the compiler takes of torch's own kernels for attention the one that `module` is set to: a traced program does not hold the
    choice. Raises Unsupported where it is set to several: a compilation has one."""
    kinds = [kind for kind in backends(module) if kind == NATIVE or kind in _OF_TORCH]
    if not any(kind in _OF_TORCH for kind in kinds):
        yield
        return
    if len(kinds) > 1:
        raise Unsupported(
            f"its attention is computed by several of torch's kernels ({', '.join(kinds)}), and a graph is compiled for one.",
            remedy="set_attention_backend() on the whole model.",
        )
    with sdpa_kernel(_OF_TORCH[kinds[0]]):
        yield


def enter(wanted: Collection[str], *, own: bool) -> None:
    """Make the backend active in this process for good, as it was where `wanted` was recorded: by this very user, or not his `own`.

    Raises BadInput for a name that this diffusers does not have, Unsupported for one that somebody else may not choose: its kernels are
    fetched from the Hub, and run.
    """
    for name in wanted:
        if name == active() == NATIVE:
            continue
        from diffusers.models import attention_dispatch as dispatch

        choice(name, known=[one.value for one in dispatch.AttentionBackendName], field="attention backend")
        backend = dispatch.AttentionBackendName(name)
        if backend in dispatch._HUB_KERNELS_REGISTRY and not own and name != active():
            raise Unsupported(
                f"it was recorded with the attention backend {name}, whose kernels are fetched from the Hub and run.",
                remedy=f"set {_VARIABLE}={name} for this build, if that is meant.",
            )
        dispatch._maybe_download_kernel_for_backend(backend)  # which the variable alone does not do
        dispatch._AttentionBackendRegistry.set_active_backend(backend)


def _named(backend: Any) -> str:
    return str(getattr(backend, "value", backend))
