"""Simulated: a GPU that is absent. Everything that asks for the device is answered from its row; nothing is loaded, launched or timed.

The one module that patches private names of torch and triton for this. Each was checked on torch 2.11.0, 2.13.0 and 2.15.0 (triton
3.6.0, 3.7.1 and 3.9.0); all are put back at the end, also on error. A build runs in a process of its own all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import _lru_cache_wrapper, partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from aot.machine.sku import Sku
from aot.model.hollow import replace_weights

DEVICE = "cuda:0"
# whose caches remember what a device answered
_REMEMBERING = ("torch._inductor", "torch._dynamo.device_interface", "torch.utils._triton")


@contextmanager
def simulated(sku: Sku) -> Iterator[None]:
    """Within, torch's compiler and triton see one GPU of this row; outside, and after an error, what was there before."""
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config

    device = SimpleNamespace(**sku.properties())
    _forget()
    with ExitStack() as stack:
        stack.callback(_forget)
        for owner, name, value in (
            *_torch_cuda(device),
            *_device_interface(CudaInterface, device),
            *_launching(),
            (nn.Module, "_apply", _replacing_fakes(nn.Module._apply)),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        active = triton.runtime.driver.__dict__.get("_active")
        stack.callback(triton.runtime.driver.__dict__.__setitem__, "_active", active)
        triton.runtime.driver.set_active(_triton_driver(device))
        stack.enter_context(config.patch(_settings(config)))
        yield


def _torch_cuda(device: SimpleNamespace) -> Iterator[tuple[Any, str, Any]]:
    """Not `is_available`: fake tensors ask it, and would start a real context."""
    answers = {
        "get_device_properties": device,
        "get_device_capability": (device.major, device.minor),
        "get_device_name": device.name,
        "device_count": 1,
        "current_device": 0,
        "synchronize": None,
        "_lazy_init": None,
        "is_bf16_supported": True,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
    }
    for name, value in answers.items():
        yield torch.cuda, name, _answer(value)
    yield torch._C, "_cuda_getCurrentRawStream", _answer(0)


def _device_interface(interface: Any, device: SimpleNamespace) -> Iterator[tuple[Any, str, Any]]:
    """What Dynamo and Inductor ask instead of torch.cuda."""
    answers = {
        "get_compute_capability": device.major * 10 + device.minor,
        "get_device_properties": device,
        "is_available": True,
        "current_device": 0,
        "is_bf16_supported": True,
        "exchange_device": 0,
        "maybe_exchange_device": 0,
        "set_device": None,
        "synchronize": None,
    }
    for name, value in answers.items():
        yield interface, name, staticmethod(_answer(value))
    yield interface.Worker, "get_device_properties", staticmethod(_answer(device))
    yield interface.Worker, "current_device", staticmethod(_answer(0))


def _launching() -> Iterator[tuple[Any, str, Any]]:
    """What would load a kernel, launch it, or make tensors to time it with."""
    from torch._inductor import graph, select_algorithm
    from torch._inductor.runtime import triton_helpers, triton_heuristics
    from torch._inductor.utils import is_same_tensor
    from triton.compiler import CompiledKernel

    def no_handles(kernel: Any) -> None:  # of a kernel only its metadata is wanted
        kernel.module = kernel.function = kernel.n_regs = kernel.n_spills = 0
        kernel.n_max_threads, kernel._run = 1024, _answer(None)

    def record(autotuner: Any, *_: Any, stream: Any = None, **__: Any) -> None:  # the block that would time kernels
        autotuner.save_gpu_kernel(stream, autotuner.launchers[0])

    def on_meta(size: Any, stride: Any, _device: Any, dtype: torch.dtype, *_: Any, **__: Any) -> torch.Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device="meta")

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:  # by where their data is, of which a fake has none
        return one is other if isinstance(one, FakeTensor) or isinstance(other, FakeTensor) else is_same_tensor(one, other)

    yield graph, "is_same_tensor", same
    yield CompiledKernel, "_init_handles", no_handles
    yield triton_heuristics.CachingAutotuner, "run", record
    yield triton_heuristics.CachingAutotuner, "_dynamic_scale_rblock", _answer(None)  # by registers, which only loading tells
    yield select_algorithm.AlgorithmSelectorCache, "generate_example_value", staticmethod(on_meta)
    yield triton_helpers, "set_driver_to_gpu", _answer(None)


def _replacing_fakes(apply: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """`nn.Module.to` and its like swap the contents of two fakes, which torch refuses while its mode refers to them: replace them."""

    def replacing(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        own = [*module._parameters.values(), *module._buffers.values()]
        if not any(isinstance(tensor, FakeTensor) for tensor in own):
            return apply(module, function, recurse)
        for child in module.children() if recurse else ():
            child._apply(function)  # type: ignore[no-untyped-call]
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(function(weight.detach()), requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
        return module

    return replacing


def _settings(config: Any) -> dict[str, Any]:
    """Folding constants and padding shapes compute on the device; so do launchers of triton's kernels that torch brings itself.
    Inductor's own workers are processes that see no device, and take over at whatever moment they are ready."""
    wanted = {
        "compile_threads": 1,
        "joint_graph_constant_folding": False,
        "shape_padding": False,
        "deterministic": True,
        "use_static_cuda_launcher": False,  # by this name up to torch 2.13
        "use_static_triton_launcher": False,
    }
    return {name: value for name, value in wanted.items() if name in config._config}


def _triton_driver(device: SimpleNamespace) -> SimpleNamespace:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import ty_to_cpp

    properties = {
        "max_shared_mem": device.shared_memory_per_block_optin,
        "multiprocessor_count": device.multi_processor_count,
        "warpSize": device.warp_size,
        "max_num_regs": device.regs_per_multiprocessor,
        "sm_clock_rate": device.clock_rate,
        "mem_clock_rate": device.memory_clock_rate,
        "mem_bus_width": device.memory_bus_width,
    }
    capability = device.major, device.minor
    return SimpleNamespace(
        utils=SimpleNamespace(get_device_properties=_answer(properties)),
        launcher_cls=None,
        get_current_device=_answer(0),
        get_current_stream=_answer(0),
        set_current_device=_answer(None),
        is_active=_answer(True),
        get_current_target=_answer(GPUTarget("cuda", device.major * 10 + device.minor, device.warp_size)),
        get_device_capability=_answer(capability),
        get_active_torch_device=_answer(torch.device(DEVICE)),
        get_device_interface=_answer(torch.cuda),
        map_python_to_cpp_type=ty_to_cpp,
    )


def _answer(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _forget() -> None:
    """Empty the caches that may remember another device than the one that is there from now on."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_REMEMBERING)]
    for module in modules:
        for value in list(vars(module).values()):
            held = vars(value).values() if isinstance(value, type) and value.__module__ == module.__name__ else ()
            for one in (value, *held):
                function = getattr(one, "__func__", one) if isinstance(one, staticmethod | classmethod) else one
                # what registers patterns, once a process, remembers no device, and registering them again is an error
                if isinstance(function, _lru_cache_wrapper) and not function.__name__.endswith("_init"):
                    function.cache_clear()


@contextmanager
def fake_device(mode: FakeTensorMode) -> Iterator[None]:
    """Within, tensors are made on the simulated device: they have metadata and no data."""
    with mode, torch.device(DEVICE):
        yield


def to_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace the weights of `module` by fakes of the same metadata on the simulated device; what is tied stays tied."""
    replace_weights(module, partial(_fake, mode=mode), partial(_fake, mode=mode))


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A tensor of the same metadata on the simulated device."""
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


new_mode = partial(FakeTensorMode, allow_non_fake_inputs=True)
