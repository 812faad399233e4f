"""Inductor: the one module that drives torch's compiler. Private names of torch stay in here and in `runner`, `capture`.

Checked on torch 2.11.0, 2.13.0 and 2.15.0: `torch._inductor.aoti_compile_and_package`, `torch._inductor.config`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from aot.artifact.operators import beside
from aot.artifact.promise import Promise
from aot.cache_store.errors import CodedError, RootRefused
from aot.cache_store.root import check_owned
from aot.choice import choice
from aot.compiler.mutation import mutates
from aot.compiler.sizes import along, guards, promise
from aot.environment import INDUCTOR_DIRECTORY
from aot.errors import BuildFailed, Unsupported, first_line
from aot.model.attention import lowered
from aot.model.axes import Axes
from aot.model.casting import called_with
from aot.model.formula import Formula
from aot.model.signature import Form, Signature
from aot.model.traced import TracedCode
from aot.model.tracing import tracing
from aot.model.twin import twin
from aot.model.weights import LiveWeights
from aot.model.wrapped import assemblies, put_together
from aot.model.writes import SAME, Results
from aot.request.mode import Setting
from aot.request.options import Options


class _Returned:
    """The forms of what a module returned, and of what it wrote into its arguments. An object of its own: export puts back
    attributes and lists that tracing changes."""

    form: Form = ()
    writes: Form = SAME

    def take(self, returned: Any, call: tuple[Any, Any], signature: Signature, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """All results, as tensors."""
        results = Results.of(returned, call, signature.form, tensors)
        self.form, self.writes = results.returned, results.writes
        return results.tensors


@dataclass(frozen=True, slots=True)
class Traced:
    """What a graph returns and writes, and the code it was traced from; whether it changes tensors of the call in place; and which
    calls it serves beside the traced one."""

    outputs: Form
    writes: Form
    code: TracedCode
    mutates: bool
    served: Promise | None
    suspected: tuple[Formula, ...] = ()  # what the compiler took for granted beside, which may be no matter


class _WeightsAsInputs(nn.Module):
    """`forward(weights, tensors)`: with weights as inputs nothing is lifted as a constant, so nothing can be baked in."""

    module: nn.Module

    def __init__(self, module: nn.Module, names: list[str], signature: Signature) -> None:
        super().__init__()
        object.__setattr__(self, "module", module)  # hidden from export, which would lift its weights
        self.names, self.signature = names, signature
        self.wrapped = assemblies(module)
        self.returned = _Returned()

    def forward(self, weights: list[torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        args, kwargs = self.signature.call(tensors)
        returned = called_with(self.module, put_together(self.names, weights, self.wrapped), args, kwargs)
        return self.returned.take(returned, (args, kwargs), self.signature, tensors)


class _WeightsInside(nn.Module):
    """`forward(weights, tensors)` with the module's own weights, which export lifts: what freezing folds into the code."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module, self.signature = module, signature
        self.returned = _Returned()

    def forward(self, _weights: list[torch.Tensor], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        args, kwargs = self.signature.call(tensors)
        return self.returned.take(self.module(*args, **kwargs), (args, kwargs), self.signature, tensors)


# The number of cores that serve is not the number that built: without this the code, and Inductor's own key, hold the latter
_ANY_CORES: Mapping[str, Setting] = {"cpp.dynamic_threads": True}


@dataclass(frozen=True, slots=True)
class Configuration:
    """How graphs are compiled: Inductor's options, whether the weights go inside, the device type, further GPU architectures."""

    inductor: Mapping[str, Setting]
    frozen: bool
    device: str
    also: tuple[str, ...] = ()

    def of_inductor(self) -> dict[str, Any]:
        """As Inductor takes it. Raises Unsupported for what this torch cannot do."""
        # a CUDA graph is recorded around a loaded graph, not in it
        found: dict[str, Any] = dict(_ANY_CORES)
        found |= {name: value for name, value in self.inductor.items() if name != "triton.cudagraphs"}
        if self.device == "cuda":
            # nothing is computed on the host; trying out what its CPU has takes longer than compiling a block
            found |= {"aot_inductor.embed_kernel_binary": True, "cpp.simdlen": 256, "cpp.vec_isa_ok": True}
        if self.also:
            _check_multi_arch()
            found["aot_inductor.emit_multi_arch_kernel"] = True
        return found


def _check_multi_arch() -> None:
    from torch._inductor.codegen.cuda import compile_utils  # up to torch 2.13 it knows no list of architectures

    if not hasattr(compile_utils, "_cuda_multi_arch_gencode_options"):
        raise Unsupported(
            f"--also: torch {torch.__version__} puts one architecture into a library.",
            remedy="build with torch 2.15, or once for each GPU.",
        )


def compile_graph(
    module: nn.Module,
    signature: Signature,
    tensors: list[torch.Tensor],
    *,
    dynamic: Axes | None,
    configuration: Configuration,
    library: Path,
) -> Traced:
    """Compile `module` for calls of `signature`, or along the axes `dynamic`, into the shared library `library`. Along axes, which
    calls that comes to is read off what was traced.

    Traced is a twin: `module` stays as it is. `tensors` are of the signature; like the weights they may be fakes. The library
    takes the module's weights (in the order of LiveWeights.names; none under freezing), then the call's tensors. Raises
    BuildFailed, Unsupported for traced code that nothing could compare later.
    """
    names, weights = _inputs(module, configuration)
    traced = twin(module)
    wrapped = _WeightsInside(traced, signature) if configuration.frozen else _WeightsAsInputs(traced, names, signature)
    shapes = None if dynamic is None else ([None] * len(weights), along(dynamic))
    package = library.with_suffix(".pt2")
    try:
        with torch.no_grad(), lowered(module):
            with tracing() as codes:
                program = torch.export.export(wrapped, (weights, tensors), dynamic_shapes=shapes, strict=False)
            code = TracedCode.of(codes, module)
            writes = mutates(program, program.graph_signature.user_inputs[len(weights) :])
            served = promise(program, dynamic, signature) if dynamic else None
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=configuration.of_inductor())
    except CodedError:
        raise
    except Exception as error:  # whatever the compiler raises is its answer; the traceback goes to the build log
        raise BuildFailed(f"{type(module).__name__} did not compile: {type(error).__name__}: {first_line(error)}") from error
    suspected = tuple(found for found in guards(program) if found not in served.conditions) if served else ()
    _extract_library(package, library)
    package.unlink()
    return Traced(wrapped.returned.form, wrapped.returned.writes, code, writes, served, suspected)


def _inputs(module: nn.Module, configuration: Configuration) -> tuple[list[str], list[torch.Tensor]]:
    """The names and tensors of the weights that a graph takes as inputs."""
    if configuration.frozen:
        return [], []
    weights = LiveWeights(module)
    return weights.names, weights.tensors() or []


def prepare_forks() -> None:
    """What every fork that compiles for this CPU, and every build, would do again: import the compiler, and compile a probe of each kind
    of vectors, whose libraries are kept for all builds of a user: 8 s of 24 for a small graph."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa  # remembers its answer

    kept = _kept_probes()
    if kept is None:
        pick_vec_isa()  # of this build alone
        return
    making = kept if kept.exists() else Path(tempfile.mkdtemp(prefix=f"{kept.name}-", dir=kept.parent))
    with mock.patch.dict(os.environ, {INDUCTOR_DIRECTORY: str(making)}):
        pick_vec_isa()
    if making != kept:
        with suppress(OSError):  # another build was quicker
            if any(making.rglob("*.so")):  # whole or not at all: what a killed compiler left would be taken for what no CPU can run
                making.rename(kept)
        shutil.rmtree(making, ignore_errors=True)


def _kept_probes() -> Path | None:
    """Where the probes of this torch and compiler are kept, beside the headers that Inductor precompiles; None where others could put
    something there, which would be opened."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    folder = Path(default_cache_dir())
    kept = folder / f"aot-vectors-{torch.__version__}-{os.environ.get('CXX', '')}".replace("/", "_")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in [folder, *([kept] if kept.exists() else [])]:
            check_owned(path, what="Inductor's cache", directory=True)
    except (OSError, RootRefused):
        return None
    return kept


def jit(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """`torch.compile` with the same configuration. Static unless asked: with torch's default the second shape would become
    a dynamic graph, and whether a warm directory serves a call would depend on which shape came first. Dynamic marks height
    and width only, the last two sizes of every image-like tensor: a batch or a prompt's length that varies is another graph."""
    compiled = torch.compile(function, **jit_arguments(options))
    if not options.dynamic:
        return compiled

    @wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        for tensor in (*args, *kwargs.values()):
            if isinstance(tensor, torch.Tensor) and tensor.dim() >= 4:
                torch._dynamo.maybe_mark_dynamic(tensor, (tensor.dim() - 2, tensor.dim() - 1))
        return compiled(*args, **kwargs)

    return marked


def jit_arguments(options: Options) -> dict[str, Any]:
    """What `torch.compile` is given for a mode. Raises BadInput for an option that this torch does not have."""
    check_options(options)
    return {"dynamic": None if options.dynamic else False, "options": {**_ANY_CORES, **options.inductor}}


def compile_traced(traced: Any, inputs: list[Any], options: Options) -> Callable[..., Any]:
    """What Inductor makes of a graph that torch.compile has traced, for the backend that it asks."""
    inductor: Any = torch._dynamo.lookup_backend("inductor")
    found: Callable[..., Any] = inductor(traced, inputs, config_patches=jit_arguments(options)["options"])
    return found


def reset_code(function: Any) -> None:
    """Drop what torch.compile has made of a function, for whichever module it was."""
    if code := getattr(function, "__code__", None):
        torch._C._dynamo.eval_frame.reset_code(code)


def check_options(options: Options) -> None:
    """Raises BadInput for an Inductor option that this torch does not have, naming the nearest."""
    from torch._inductor import config

    for name in options.inductor:
        choice(name, known=config._config, field=f"Inductor option (torch {torch.__version__})")  # type: ignore[attr-defined]


def _extract_library(package: Path, library: Path) -> None:
    """The library, and beside it what its proxy executor reads: the operators that run as they do eagerly (complex numbers), if any."""
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if len(names) != 1:
            raise BuildFailed(f"expected one library in the compiled package, found {len(names)}.")
        library.write_bytes(archive.read(names[0]))
        operators = names[0].removesuffix(".so") + ".json"
        if operators in archive.namelist() and json.loads(raw := archive.read(operators)).get("nodes"):
            beside(library).write_bytes(raw)
