"""Package: a graph as ZeroGPU Spaces load it: AOTInductor's `package.pt2`, without weights, which are bound to it by name.

What a Space does with one is in `spaces/zero/torch/aoti.py` (0.51): `load_constants` with the module's own state, and call it with the
arguments of `forward`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.export.pt2_archive._package import AOTICompiledModel  # these private names were checked on torch 2.11.0, 2.14.1 and 2.15.0
from torch.utils._pytree import tree_map

from aot.artifact.kinds import NO_SOURCE
from aot.cache_store.errors import CodedError
from aot.compiler.inductor import Configuration
from aot.compiler.sizes import along
from aot.errors import BuildFailed, Unsupported, first_line
from aot.model.attention import lowered
from aot.model.axes import Axes
from aot.model.casting import casts
from aot.model.convention import Convention, Written
from aot.model.signature import Signature
from aot.model.twin import twin
from aot.model.wrapped import assemblies, is_packed

# every weight stays one of its own under its own name, and none of them is in the package
_BY_NAME = {
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "always_keep_tensor_constants": True,
    "joint_graph_constant_folding": False,
}
_HELD = ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")  # the kinds of a program's inputs that no call gives
_NAME = re.compile(r'constants_info_\[\d+\]\.original_fqn = "([^"]*)"')


def compile_package(
    module: nn.Module,
    signature: Signature,
    written: Written,
    tensors: list[torch.Tensor],
    *,
    dynamic: Axes | None,
    configuration: Configuration,
    package: Path,
) -> None:
    """Compile `module` for calls of `signature`, or along the axes `dynamic`, into `package`. It takes them as they are `written` and in
    no other way. `tensors` are of the signature; like the weights they may be fakes.

    Raises Unsupported for a module that a Space could not bind weights to, BuildFailed.
    """
    _check_weights(module)
    traced = unwrapped(twin(module))
    call, convention = signature.call(tensors), Convention(traced.forward)
    args, kwargs = convention.written(call[0], call[1], written)
    shapes = None
    if dynamic is not None:
        left = iter(along(dynamic))
        sizes: tuple[Any, Any] = tree_map(lambda value: next(left) if isinstance(value, torch.Tensor) else None, call)
        shapes = convention.named(*convention.written(sizes[0], sizes[1], written))
    try:
        with torch.no_grad(), lowered(module):
            program = torch.export.export(traced, args, kwargs, dynamic_shapes=shapes, strict=False)
            _check_names((spec.target or spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name in _HELD), traced)
            _as_traced(program)
            options = configuration.of_inductor() | _BY_NAME
            files: Any = torch._inductor.aot_compile(program.module(), *program.example_inputs, options=options)
            _pack([file for file in files if isinstance(file, str)], traced, package)
    except CodedError:
        raise
    except Exception as error:  # whatever the compiler raises is its answer; the traceback goes to the build log
        raise BuildFailed(f"{type(module).__name__} did not compile: {type(error).__name__}: {first_line(error)}") from error


def load_package(package: Path, module: nn.Module) -> AOTICompiledModel:
    """The package with the weights of `module`, as a Space binds them: it answers calls of the module's forward."""
    model: AOTICompiledModel = torch._inductor.aoti_load_package(str(package))
    state = unwrapped(twin(module)).state_dict()
    model.load_constants({name: state[name] for name in model.get_constant_fqns()}, check_full_update=True, user_managed=True)
    return model


def unwrapped(module: nn.Module) -> nn.Module:
    """With the plain tensors within wrapped weights as parameters, under the names that a Space gives them."""
    if assemblies(module):
        from torch._functorch._aot_autograd.subclass_parametrization import unwrap_tensor_subclass_parameters

        unwrap_tensor_subclass_parameters(module)
    return module


def _check_weights(module: nn.Module) -> None:
    name = type(module).__name__
    if casts(module):
        raise Unsupported(f"{name} casts its weights layer by layer, which a Space does not.", remedy="build it in one dtype.")
    if any(map(is_packed, module.parameters())):
        raise Unsupported(f"{name} has weights of GGUF, which a Space cannot bind.", remedy="build it of plain or torchao's weights.")


def _check_names(names: Iterable[str], module: nn.Module) -> None:
    """Raises Unsupported for a weight that is in no state_dict: a Space would leave it unset, and crash."""
    if unknown := sorted({*names} - {*module.state_dict()}):
        raise Unsupported(
            f"{type(module).__name__} has constants that no state_dict names: {', '.join(unknown[:3])}.",
            remedy="a Space could not set them: make them buffers that are saved, or compute them in forward.",
        )


def _as_traced(program: torch.export.ExportedProgram) -> None:
    """Weights that are fakes of a simulated device belong to its mode, and tracing has its own: take those."""
    traced = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.target in program.state_dict and isinstance(program.state_dict[spec.target], torch._subclasses.FakeTensor):
            program.state_dict[spec.target] = nn.Parameter(traced[spec.arg.name], requires_grad=False)


def _pack(files: list[str], module: nn.Module, package: Path) -> None:
    """The library and what is said of it; not its sources, but for the name of one, by which torch up to 2.12 finds what is said.

    Raises Unsupported where the compiler made constants of its own.
    """
    from torch._inductor.package.package import package_aoti

    sources = [Path(file) for file in files if file.endswith(".cpp")]
    for source in sources:
        _check_names(_NAME.findall(source.read_text()), module)
    libraries = {Path(file).stem for file in files if file.endswith(".so")}
    archive = BytesIO()  # without a name, by which the folder within would be called
    with TemporaryDirectory() as folder:
        named = [Path(folder) / source.name for source in sources if source.stem in libraries]
        for source in named:
            source.write_bytes(NO_SOURCE)
        package_aoti(archive, [*(file for file in files if not file.endswith(".cpp")), *map(str, named)])
    package.parent.mkdir(parents=True, exist_ok=True)
    package.write_bytes(archive.getvalue())
