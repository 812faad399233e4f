"""Inductor: the one module that drives torch's compiler. Private names of torch stay in here and in `runner`, `capture`.

Checked on torch 2.15.0: `torch._inductor.aoti_compile_and_package`, `torch._inductor.config`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from aot.choice import choice
from aot.errors import BuildFailed
from aot.options import Options
from aot.signature import Form, Signature, flatten
from aot.weights import LiveWeights


class _Returned:
    """The form of what a module returned. An object of its own: export puts back attributes and lists that tracing changes."""

    form: Form = ()


class _WeightsAsInputs(nn.Module):
    """`forward(weights, tensors)`: with weights as inputs nothing is lifted as a constant, so nothing can be baked in."""

    module: nn.Module

    def __init__(self, module: nn.Module, names: list[str], signature: Signature) -> None:
        super().__init__()
        object.__setattr__(self, "module", module)  # hidden from export, which would lift its weights
        self.names, self.signature = names, signature
        self.returned = _Returned()

    def forward(self, weights: list[torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        args, kwargs = self.signature.call(tensors)
        found: list[torch.Tensor] = []
        returned = torch.func.functional_call(self.module, dict(zip(self.names, weights, strict=True)), args, kwargs)
        self.returned.form = flatten(returned, found)
        return found


def compile_graph(module: nn.Module, signature: Signature, *, options: Options, library: Path) -> Form:
    """Compile `module` for calls of `signature` into the shared library `library`; return the form of its outputs.

    The library takes the module's weights (in the order of LiveWeights.names), then the call's tensors. Raises BuildFailed.
    """
    weights = LiveWeights(module)
    wrapped = _WeightsAsInputs(module, weights.names, signature)
    package = library.with_suffix(".pt2")
    try:
        with torch.no_grad():
            program = torch.export.export(wrapped, (weights.tensors(), signature.zeros()), strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=_configs(options))
    except Exception as error:  # whatever the compiler raises is its answer; the traceback goes to the build log
        raise BuildFailed(f"{type(module).__name__} did not compile: {type(error).__name__}: {_first_line(error)}") from error
    _extract_library(package, library)
    package.unlink()
    return wrapped.returned.form


def jit(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """`torch.compile` with the same configuration. Static unless asked: with torch's default the second shape would become
    a dynamic graph, and whether a warm directory serves a call would depend on which shape came first."""
    check_options(options)
    return torch.compile(function, dynamic=options.dynamic, options=cast(dict[str, Any], options.inductor))


def check_options(options: Options) -> None:
    """Raises BadInput for an Inductor option that this torch does not have, naming the nearest."""
    from torch._inductor import config

    for name in options.inductor:
        choice(name, known=config._config, field=f"Inductor option (torch {torch.__version__})")  # type: ignore[attr-defined]


def apply_process_settings(settings: Mapping[str, bool]) -> None:
    """Set what holds for the whole process: names below `torch.backends`."""
    for name, value in settings.items():
        *owners, last = name.split(".")
        owner: Any = torch.backends
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, last, value)


def _configs(options: Options) -> dict[str, Any]:
    # the number of cores that serve is not the number that built
    return {"cpp.dynamic_threads": True, **options.inductor}


def _extract_library(package: Path, library: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if len(names) != 1:
            raise BuildFailed(f"expected one library in the compiled package, found {len(names)}.")
        library.write_bytes(archive.read(names[0]))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
