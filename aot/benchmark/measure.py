"""Measure: one way of starting up, in its own process. The parent (`aot.benchmark.bench`) runs several and interleaves their rounds."""

from __future__ import annotations

import importlib
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from aot.artifact.certificate import compare
from aot.artifact.ledger import stats
from aot.benchmark.measurement import COMPARED, Way
from aot.building.plan import lay_out
from aot.building.recorded import SEED, make_plan, prepare
from aot.compiler.inductor import jit_arguments
from aot.compiler.process import STARTED, Parent
from aot.errors import Unsupported
from aot.machine.device import Device, wait_for_device
from aot.machine.settings import claim, complete
from aot.model.blocks import repeated
from aot.model.capture import in_dtype
from aot.model.signature import Signature, flatten
from aot.request.options import Options
from aot.request.recipe import Recipe
from aot.request.request import Request
from aot.serving.nexfort import PIPELINE_COMPONENTS, compile_pipe

STEADY_SECONDS = 2.0  # how long one round of steady-state calls lasts, at least
STEADY_CALLS = 5  # and how many calls of each kind it makes, at least


def save_calls(recipe: Recipe, request: Request, message: Mapping[str, Any], parent: Parent) -> None:
    """Write the pipeline's calls to a file: capturing them in the measured processes would warm those up."""
    plan = make_plan(recipe, replace(request, options=replace(request.options, dynamic=False)))  # of the sizes that are asked for alone
    calls = [
        {"component": call.component, "signature": call.signature.to_json(), "tensors": call.tensors, "dtype": call.dtype}
        for call in plan.calls
    ]
    torch.save(calls, message["calls"])
    parent.tell("done")


def measure(recipe: Recipe, request: Request, message: Mapping[str, Any], parent: Parent) -> None:
    """Start up, then serve the parent's orders: `round` for steady-state times, `pipeline` for the seeds' figures, `stop`."""
    way = Way(message["way"])
    _import(way)
    before = {"interpreter": STARTED - message["spawned"], "imports": time.perf_counter() - STARTED}
    claim("this bench", complete(request.options.process))  # eager too is measured as the mode has it
    with torch.no_grad():
        made = time.perf_counter()
        pipeline, modules = prepare(recipe, request)
        pipeline.to(Device.of(request.gpu).name)
        before["weights"] = time.perf_counter() - made
        calls = [_Call(item, modules) for item in torch.load(message["calls"], weights_only=True)]
        imported = set(sys.modules)
        started = time.perf_counter()
        if way in (Way.REGIONAL_COLD, Way.REGIONAL_WARM):
            _compile_repeated_blocks(modules, request.options)
        elif way is not Way.EAGER:
            compile_pipe(
                pipeline,
                options=request.options,
                ignores=tuple(path for path in PIPELINE_COMPONENTS if path not in modules),
                on_miss="error" if way is Way.ARTIFACT else "compile",
            )
        setup = time.perf_counter() - started
        first_calls = [call.timed() for call in calls]
        parts = stats()[0]["seconds"] if way is Way.ARTIFACT else {}
        names = [call.name for call in calls]
        parent.tell("started", before_s=before, setup_s=setup, parts_s=parts, first_call_s=first_calls, calls=names)
        new = {name.split(".")[1] for name in set(sys.modules) - imported if name.startswith("torch.")}
        parent.tell("compared", **_compared([call.output for call in calls], Path(message["outputs"]), way))
        _serve(recipe, request, pipeline, calls, message, parent)
    parent.tell("done", max_memory=_max_memory(), inductor_imported="_inductor" in new)


def _compile_repeated_blocks(modules: Mapping[str, torch.nn.Module], options: Options) -> None:
    """As diffusers documents it. Models that name no repeated blocks are told the ones that they have. Raises Unsupported for none."""
    found = False
    for module in modules.values():
        lay_out(module, options)
        if isinstance(module, ModelMixin) and (blocks := repeated(module)):
            if not getattr(module, "_repeated_blocks", None):
                module._repeated_blocks = sorted({type(module.get_submodule(path)).__name__ for path in blocks})
            module.compile_repeated_blocks(**jit_arguments(options))
            found = True
    if not found:
        raise Unsupported("none of the components has repeated blocks to compile.", remedy="leave the regional ways out of --ways.")


class _Call:
    """One recorded call, ready to be made again."""

    def __init__(self, item: Mapping[str, Any], modules: Mapping[str, torch.nn.Module]) -> None:
        signature = Signature.from_json(item["signature"])
        self._module, self._dtype = modules[item["component"]], item["dtype"]
        self._args, self._kwargs = signature.call(item["tensors"])
        self.name = f"{item['component']} {signature}"
        self.output: Any = None

    def timed(self) -> float:
        with in_dtype(self._module, self._dtype):
            started = time.perf_counter()
            self.output = self._module(*self._args, **self._kwargs)
            wait_for_device()
            return time.perf_counter() - started


def _import(way: Way) -> None:
    """Imports are not what is compared: what a way needs is imported before the clock starts."""
    importlib.import_module("diffusers")
    if way not in COMPARED:
        importlib.import_module("torch._dynamo")
        importlib.import_module("torch._inductor.compile_fx")


def _compared(outputs: list[Any], file: Path, way: Way) -> dict[str, Any]:
    """This way's first outputs against eager's, whose process wrote them to `file`: tensors only, an encoder's are in a class."""
    tensors: list[torch.Tensor] = []
    flatten(outputs, tensors)
    if way is Way.EAGER:
        torch.save(tensors, file)
    return compare(tensors, torch.load(file, weights_only=True)).to_json()


def _serve(recipe: Recipe, request: Request, pipeline: Any, calls: list[_Call], message: Mapping[str, Any], parent: Parent) -> None:
    while (order := parent.receive()) != "stop":
        if order == "round":
            parent.tell("round", median_s=[_steady(call) for call in calls])
        else:
            arguments = recipe.call(pipeline, request.examples(recipe)[0], message["steps"], SEED)
            with _step_times(pipeline.scheduler) as times:
                started = time.perf_counter()
                pipeline(**arguments)
                wait_for_device()
                seconds = time.perf_counter() - started
            parent.tell("pipeline", seconds=seconds, iterations_per_s=(len(times) - 1) / (times[-1] - times[0]))


def _steady(call: _Call) -> float:
    """The median of a round's calls, in seconds."""
    times: list[float] = []
    while len(times) < STEADY_CALLS or sum(times) < STEADY_SECONDS:
        times.append(call.timed())
    return statistics.median(times)


@contextmanager
def _step_times(scheduler: Any) -> Iterator[list[float]]:
    """When each denoising step ended. Every diffusers pipeline calls its scheduler once a step; their callbacks differ."""
    times: list[float] = []
    step = scheduler.step

    def timed(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        wait_for_device()
        times.append(time.perf_counter())
        return result

    scheduler.step = timed
    try:
        yield times
    finally:
        del scheduler.step


def _max_memory() -> int:
    """Bytes: the most that was allocated on the GPU, as nexfort's tables have it; on a CPU the process's largest resident size."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
