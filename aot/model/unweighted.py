"""Unweighted: a model made from its class and config as its library would load it, without a byte of weights."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aot.errors import Unsupported
from aot.model.hollow import fill
from aot.model.signature import TensorSpec

CPU = "cpu"
_LIBRARIES = ("diffusers", "transformers")


def unweighted(kind: Any, config: str | Path | Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """An instance of a class of diffusers or transformers as `from_pretrained` makes it, with parameters whose memory nobody has
    touched: on the CPU, of the right dtypes, of no cost until something writes to them. Buffers have their numbers.

    `config` is a folder that holds one, or its content. Raises Unsupported for other classes, and what the class raises.
    """
    with torch.random.fork_rng(devices=[]), torch.device(CPU):  # some classes draw numbers that loading would replace
        return _unweighted(kind, config, dtype)


def _unweighted(kind: Any, config: str | Path | Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import PreTrainedModel

    found: Any
    if issubclass(kind, ModelMixin):
        given = kind.load_config(config) if isinstance(config, str | Path) else dict(config)
        with without_memory(), _default_dtype(dtype):
            found = kind.from_config(given)
        strict = found._keep_in_fp32_modules or ()
    elif issubclass(kind, PreTrainedModel):
        with without_memory():
            found = kind._from_config(_config(kind, config), dtype=dtype)  # under transformers' own default dtype
        found.tie_weights()
        strict = {*(found._keep_in_fp32_modules_strict or ()), *((found._keep_in_fp32_modules or ()) if dtype == torch.float16 else ())}
    else:
        raise Unsupported(
            f"{kind.__module__}.{kind.__qualname__} is a class of neither diffusers nor transformers, and nobody knows how to make it "
            "from a config.",
            remedy="build from the live pipeline: aot.build(pipe, call, gpu=...).",
        )
    _as_loaded(found, dtype, frozenset(strict))
    made: nn.Module = found.eval()
    return made


def class_named(library: str, name: str, *, what: str, also: Collection[str] = ()) -> type:
    """The class `name` of a `library`, as a pipeline's index writes the two: diffusers, transformers, or a module of diffusers'
    pipelines; else one of, or below, the modules `also`. No other is imported. Raises Unsupported, naming `what` it is of."""
    import diffusers.pipelines

    own = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
    if own is None:
        if not any(library == known or library.startswith(f"{known}.") for known in (*_LIBRARIES, *also)):
            raise Unsupported(
                f"{what} is a {library}.{name}, and classes are taken from {', '.join((*_LIBRARIES, *also))} alone.",
                remedy="name its module, if you trust it; or build from the live pipeline: aot.build(pipe, call, gpu=...).",
            )
        try:
            own = importlib.import_module(library)
        except ImportError as error:
            raise Unsupported(f"{what} is a {library}.{name}, which cannot be imported here: {error}", remedy="install it.") from error
    found = getattr(own, name, None)
    if not isinstance(found, type):
        raise Unsupported(
            f"{what} is a {library}.{name}, which is not in the {library.partition('.')[0]} that is installed.",
            remedy="install the version that has it.",
        )
    return found


def _config(kind: Any, config: str | Path | Mapping[str, Any]) -> Any:
    own = kind.config_class
    return own.from_pretrained(config) if isinstance(config, str | Path) else own.from_dict(dict(config))


@contextmanager
def without_memory() -> Iterator[None]:
    """Within, what is registered as a parameter has no memory, and setting it to random numbers costs nothing."""
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    with init_empty_weights(include_buffers=False):
        yield


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _as_loaded(module: nn.Module, dtype: torch.dtype, in_float32: frozenset[str]) -> None:
    """Give everything that a state dict holds the dtype that loading it would, and parameters memory."""
    for path, child in module.named_modules():
        kept = in_float32.intersection(path.split("."))
        for name, weight in child._parameters.items():
            if weight is not None and weight.is_floating_point():
                weight.data = weight.data.to(torch.float32 if kept or name in in_float32 else dtype)
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in child._non_persistent_buffers_set:
                child._buffers[name] = buffer.to(torch.float32 if kept or name in in_float32 else dtype)
    give_memory(module)


def give_memory(module: nn.Module) -> None:
    """Parameters that have no memory get some on the CPU, which nobody has touched."""
    fill(module, CPU, _untouched)


def _untouched(spec: TensorSpec, _: int) -> torch.Tensor:
    return torch.empty_strided(spec.shape, spec.stride, dtype=getattr(torch, spec.dtype), device=CPU)
