"""Attention: which of diffusers' backends computes it: a model's own choice, else the one that is active in the process.

`set_attention_backend`, `attention_backend(...)` and `DIFFUSERS_ATTN_BACKEND` come to these two. Names of diffusers 0.42.1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import Any

from torch import nn

from aot.choice import choice
from aot.errors import Unsupported

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


def enter(wanted: Collection[str], *, own: bool) -> None:
    """Make the backend active in this process for good, as it was where `wanted` was recorded: by this very user, or not his `own`.

    Raises BadInput for a name that this diffusers does not have, Unsupported for one that somebody else may not choose: its kernels are
    fetched from the Hub, and run.
    """
    for name in wanted:
        if name == active():
            continue
        from diffusers.models import attention_dispatch as dispatch

        choice(name, known=[one.value for one in dispatch.AttentionBackendName], field="attention backend")
        backend = dispatch.AttentionBackendName(name)
        if backend in dispatch._HUB_KERNELS_REGISTRY and not own:
            raise Unsupported(
                f"it was recorded with the attention backend {name}, whose kernels are fetched from the Hub and run.",
                remedy=f"set {_VARIABLE}={name} for this build, if that is meant.",
            )
        dispatch._maybe_download_kernel_for_backend(backend)
        dispatch._AttentionBackendRegistry.set_active_backend(backend)


def _named(backend: Any) -> str:
    return str(getattr(backend, "value", backend))
