"""Capture: what a call comes to: a run of it on fakes, which says what it returns, writes and calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # checked on torch 2.11.0, 2.13.0 and 2.15.0

from aot.model.casting import called_with
from aot.model.convention import Convention, Written
from aot.model.signature import Form, Signature, TensorSpec
from aot.model.twin import twin
from aot.model.wrapped import with_parts
from aot.model.writes import Results, give_back


@dataclass(frozen=True, slots=True)
class BlockCall:
    """How the component calls one of its repeated blocks."""

    path: str  # of the block, in the component
    signature: Signature
    written: Written | None = None  # where it is known


@dataclass(frozen=True, slots=True)
class Call:
    """One way in which the pipeline calls a component, with tensors to make such a call.

    `dtype` is that of the component's weights at that moment: some pipelines decode in float32 what they denoised in float16.
    """

    component: str
    signature: Signature
    tensors: list[torch.Tensor]
    blocks: tuple[BlockCall, ...]
    dtype: torch.dtype
    written: tuple[Written, ...] = ()  # every way in which it was

    def __str__(self) -> str:
        return f"{self.component} {self.signature}"


def modules_of(pipeline: Any) -> dict[str, nn.Module]:
    """The modules among a pipeline's components, by name; none of what is no pipeline."""
    return {name: part for name, part in getattr(pipeline, "components", {}).items() if isinstance(part, nn.Module)}


def component(pipeline: Any, path: str) -> nn.Module:
    """The module at a dotted path of the pipeline."""
    found: nn.Module = attrgetter(path)(pipeline)
    return found


@contextmanager
def in_dtype(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within, the floating weights of `module` are of `dtype`; afterwards they are the very ones that they were before."""
    if dtype_of(module) == dtype:
        yield
        return
    owned: list[dict[str, Any]] = [own for child in module.modules() for own in (child._parameters, child._buffers)]
    kept = [(own, dict(own)) for own in owned]
    numbers = [(weight, weight.data) for _, weights in kept for weight in weights.values() if isinstance(weight, nn.Parameter)]
    module.to(dtype=dtype)
    try:
        yield
    finally:
        for own, weights in kept:
            own.update(weights)
        for weight, data in numbers:
            if weight.dtype != data.dtype:
                weight.data = data


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of the module's first floating weight; float32 where it has none."""
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)


@dataclass(frozen=True, slots=True)
class FakeRun:
    """What a call on fakes came to: the form and specs of what it returned, then of what it wrote into its arguments; and the
    calls of blocks."""

    returned: Form
    writes: Form
    specs: tuple[TensorSpec, ...]
    blocks: tuple[BlockCall, ...]

    def answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Zeros, returned and written as the call would."""
        return give_back(self.returned, self.writes, [spec.blank() for spec in self.specs], (args, kwargs))


def fake_run(
    module: nn.Module, signature: Signature, tensors: list[torch.Tensor], *, blocks: Iterable[str] = (), fakes: FakeTensorMode | None = None
) -> FakeRun:
    """Run a twin of the module on tensors that have metadata and no data: the strides are the device's own, the time is none.

    `blocks` are the paths of submodules whose calls are noted. Raises what the module raises, and what torch does where the
    module asks a tensor for its numbers.
    """
    fake = fakes or FakeTensorMode(allow_non_fake_inputs=True)
    ran = twin(module)

    def faked(tensor: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = tensor if isinstance(tensor, FakeTensor) else fake.from_tensor(tensor)
        return made

    weights = {name: with_parts(tensor, faked) for name, tensor in [*ran.named_parameters(), *ran.named_buffers()]}
    given = [faked(tensor) for tensor in tensors]
    args, kwargs = signature.call(given)
    seen: list[BlockCall] = []
    for path in blocks:
        _watch(ran.get_submodule(path), path, seen)
    with torch.no_grad(), fake:
        returned = called_with(ran, weights, args, kwargs)
    results = Results.of(returned, (args, kwargs), signature.form, given)
    return FakeRun(results.returned, results.writes, tuple(map(TensorSpec.of, results.tensors)), tuple(seen))


def _watch(block: nn.Module, path: str, seen: list[BlockCall]) -> None:
    convention = Convention(block.forward)

    def write_down(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        signature, _tensors = Signature.of(*convention.canonical(args, kwargs))
        seen.append(BlockCall(path, signature, (len(args), tuple(kwargs))))

    block.register_forward_pre_hook(write_down, with_kwargs=True)
