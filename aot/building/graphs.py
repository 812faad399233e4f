"""Graphs: what a build's own processes do. Compile a plan's units, check them against eager, fill a cache directory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import torch

from aot.artifact.book import FILE, Book, GraphEntry, Kind
from aot.artifact.certificate import check, compare, tolerance
from aot.artifact.golden import FILE as GOLDEN
from aot.artifact.golden import Golden
from aot.artifact.ledger import Ledger
from aot.artifact.runner import Graph
from aot.building.plan import Plan, Unit
from aot.building.reference import reference
from aot.cache_store.digest import Digest
from aot.compiler.cubin import architectures
from aot.compiler.inductor import Configuration, Traced, check_options, compile_graph, jit, prepare_forks
from aot.compiler.parallel import in_forks
from aot.compiler.process import Parent
from aot.compiler.stage import Stage, stage
from aot.environment import INDUCTOR_DIRECTORY
from aot.errors import BuildFailed
from aot.machine.device import Device, open_device, wait_for_device
from aot.machine.settings import claim, complete
from aot.machine.sku import CPU
from aot.machine.target import Target
from aot.model.capture import Call, in_dtype
from aot.model.signature import TensorSpec
from aot.model.weights import LiveWeights
from aot.model.writes import Results
from aot.request.compilation import Compilation
from aot.request.mode import Mode
from aot.serving.dispatch import OnMiss, ServedBy
from aot.serving.load import sites
from aot.serving.standin import Compiled, take_away

Measured: TypeAlias = dict[str, Any]
Planned: TypeAlias = Callable[[Device], Plan]

_TIMES_EAGER = 10  # what a graph's error may be of eager's own, where that is the larger


def compile_artifact(planned: Planned, request: Compilation, directory: Path, parent: Parent) -> None:
    """Fill `directory` with the files of the graph layer. The parent hears the key first and answers whether to go on."""
    check_options(request.options)
    claim("this build", complete(request.options.process))
    with open_device(request.gpu, simulate=request.simulate) as device:
        _compile_on(device, planned, request, directory, parent)


def _compile_on(device: Device, planned: Planned, request: Compilation, directory: Path, parent: Parent) -> None:
    with _stage(parent, "capture the pipeline's calls"):
        plan = planned(device)
    parent.tell("key", parts=dict(plan.key.parts), units=list(map(str, plan.units)), versions=_versions(device))
    if parent.receive() != "go":
        return
    measured: Measured = {"compile_s": {}}
    book = _compile(plan, request, device, directory, parent, measured)
    (directory / FILE).write_bytes(book.encode())
    certificate: dict[str, Any]
    if device.simulated:
        with _stage(parent, "run the eager model on the CPU for golden outputs"):
            golden = reference(plan, book, device)
        why = f"built without its GPU: nothing was run on {Target.named(request.gpu).sku}"
        certificate = {"unchecked": why, "golden": golden if isinstance(golden, str) else "of the eager model, on a CPU in float32"}
    else:
        with _stage(parent, "check against eager"):
            graphs = [Graph(entry, directory / entry.file, device=device.type) for entry in book.graphs]
            certificate = check_graphs(plan, book, graphs, device=device.type, mode=request.options.mode, measured=measured)
        with _stage(parent, "record golden outputs"):
            golden = Golden.record(book, {graph.entry.file: graph.run_flat for graph in graphs})
    if isinstance(golden, Golden):
        (directory / GOLDEN).write_bytes(golden.encode())
    parent.tell("done", measured=measured, certificate=certificate)


def fill_cache(planned: Planned, request: Compilation, parent: Parent) -> None:
    """Run every call asked for through torch.compile once; TORCHINDUCTOR_CACHE_DIR is then the cache layer's content.

    Compiled are the same submodules that the graphs are about: what a dispatcher falls back to must be what is warm.
    """
    claim("this build", complete(request.options.process))
    plan = planned(Device.of(request.gpu))
    for site in plan.sites():
        Compiled(site, partial(jit, options=request.options)).put()
    for call in plan.calls:
        with _stage(parent, f"torch.compile {call.component} for the cache layer"), torch.inference_mode():
            _timed(plan, call)
    parent.tell("done")


def _versions(device: Device) -> dict[str, str]:
    """Of what compiles; triton and CUDA where they take part."""
    found = {"torch": torch.__version__, "diffusers": version("diffusers"), "python": platform.python_version()}
    return found if device.type == CPU else {**found, "triton": version("triton"), "cuda": str(torch.version.cuda)}


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What compiling one unit gave, beside its library."""

    traced: Traced
    weights: tuple[tuple[str, TensorSpec], ...]
    seconds: float
    cubins: dict[str, int]


def _compile(plan: Plan, request: Compilation, device: Device, directory: Path, parent: Parent, measured: Measured) -> Book:
    """Compile every unit, several at once: in forks, which a real GPU's context does not survive."""
    files = [f"{unit.component}-{number}.so" for number, unit in enumerate(plan.units)]
    work = [partial(_compile_unit, plan, request, device, unit, directory / file) for unit, file in zip(plan.units, files, strict=True)]
    at_once = len(os.sched_getaffinity(0)) if device.simulated or device.type == CPU else 1
    if device.type == CPU and min(at_once, len(work)) > 1:
        prepare_forks()
    found: dict[int, _Compiled] = {}

    def told(place: int, seconds: float | None = None) -> None:
        unit = plan.units[place]
        _tell(parent, Stage(f"compile graph {place + 1} of {len(work)}, {unit}", seconds, component=unit.component))

    for place, compiled in in_forks(work, at_once=at_once, begun=told):
        found[place] = compiled
        told(place, compiled.seconds)
    entries, kinds, frozen = [], dict[Digest, Kind](), request.options.mode.freezing
    for number, (unit, file) in enumerate(zip(plan.units, files, strict=True)):
        one = found[number]
        code = kinds[unit.kind].code | one.traced.code if unit.kind in kinds else one.traced.code
        of = plan.kinds[unit.kind]
        kinds[unit.kind] = Kind(of.fingerprint, one.weights, code, of.unread)
        outputs, writes = one.traced.outputs, one.traced.writes
        entries.append(GraphEntry(unit.component, unit.paths, unit.kind, file, unit.signature, outputs, unit.dynamic, frozen, writes))
        measured["compile_s"][file] = one.seconds
        if one.cubins:
            measured.setdefault("cubins", {})[file] = one.cubins
    components = {path: fingerprint.digest for path, fingerprint in plan.fingerprints.items()}
    for fingerprint in plan.fingerprints.values():  # in regional scope no graph is of a component's kind: kept to explain a miss
        kinds.setdefault(fingerprint.digest, Kind(fingerprint))
    return Book(tuple(entries), components, kinds)


def _compile_unit(plan: Plan, request: Compilation, device: Device, unit: Unit, library: Path) -> _Compiled:
    started, module = time.perf_counter(), plan.kinds[unit.kind].module
    configuration = Configuration(request.inductor, request.options.mode.freezing, device.type, request.also)
    with device.tensors():
        tensors = unit.signature.zeros()
    # each in a directory of its own: two graphs compiled at once would write files of the same names
    own = {INDUCTOR_DIRECTORY: str(Path(os.environ[INDUCTOR_DIRECTORY]) / library.stem)}
    with in_dtype(module, unit.dtype), mock.patch.dict(os.environ, own):
        traced = compile_graph(module, unit.signature, tensors, dynamic=unit.dynamic, configuration=configuration, library=library)
        live = LiveWeights(module)
        weights = () if configuration.frozen else tuple(zip(live.names, live.specs(), strict=True))
    cubins = {} if device.type == CPU else _check_cubins(library, request)
    return _Compiled(traced, weights, round(time.perf_counter() - started, 3), cubins)


def _check_cubins(library: Path, request: Compilation) -> dict[str, int]:
    """The machine code in a library, by architecture. Raises BuildFailed when any is for another than was asked for."""
    found, asked = architectures(library.read_bytes()), {Target.named(request.gpu).arch, *request.also}
    if others := sorted(set(found) - asked):
        raise BuildFailed(f"{library.name} has kernels for {', '.join(others)}, asked for were {', '.join(sorted(asked))}.")
    if found and (missing := sorted(asked - set(found))):  # a graph of the library's own kernels alone has none
        raise BuildFailed(f"{library.name} has no kernels for {', '.join(missing)}.")
    return found


def check_graphs(plan: Plan, book: Book, graphs: list[Graph], *, device: str, mode: Mode, measured: Measured) -> dict[str, Any]:
    """Compare each component, run through its graphs exactly as it will be when loaded, with eager. Raises OutsideTolerance.

    All of eager comes first: a graph left in place would be compared with itself.
    """
    calls = [*plan.calls, *plan.checks]
    with torch.inference_mode():
        eager = [_timed(plan, call) for call in calls]
        for (name, _), site in sites(book, graphs, plan.modules).items():
            site.serve(ServedBy(name, device, OnMiss.ERROR, lambda function: function, Ledger()))
        try:
            served = [_timed(plan, call) for call in calls]
        finally:
            for module in plan.modules.values():
                take_away(module)
    names = list(map(str, calls))
    measured["eager_first_call_s"] = dict(zip(names, (seconds for _, seconds in eager), strict=True))
    measured["graph_first_call_s"] = dict(zip(names, (seconds for _, seconds in served), strict=True))
    compared = []
    for call, (got, _), (expected, _) in zip(calls, served, eager, strict=True):
        comparison, allowed = compare(got, expected), tolerance(mode, str(call.dtype).removeprefix("torch."))
        if comparison.relative_l2 > allowed:
            allowed = max(allowed, _TIMES_EAGER * _own_error(plan, call, expected))
        check(comparison, what=str(call), allowed=allowed)
        compared.append({"call": str(call), "tolerance_relative_l2": allowed, **comparison.to_json()})
    return {"tolerance_relative_l2": max(each["tolerance_relative_l2"] for each in compared), "calls": compared}


def _own_error(plan: Plan, call: Call, expected: Any) -> float:
    """How far eager itself is from the same in float64: what no order of sums can be held to. 0 for other dtypes than float32."""
    if call.dtype != torch.float32:
        return 0.0
    double = [tensor.double() if tensor.is_floating_point() else tensor for tensor in call.tensors]
    with torch.no_grad():
        exact, _ = _timed(plan, replace(call, dtype=torch.float64, tensors=double))
    return compare(expected, exact).relative_l2


def _timed(plan: Plan, call: Call) -> tuple[Any, float]:
    """What a call returns and leaves in its arguments, and the seconds it took."""
    args, kwargs = call.signature.call(call.tensors)
    module = plan.modules[call.component]
    with in_dtype(module, call.dtype):
        started = time.perf_counter()
        returned = module(*args, **kwargs)
        wait_for_device()
        seconds = round(time.perf_counter() - started, 4)
    results = Results.of(returned, (args, kwargs), call.signature.form, call.tensors)
    return (results.returned, results.writes, results.tensors), seconds


def _stage(parent: Parent, what: str) -> AbstractContextManager[None]:
    return stage(partial(_tell, parent), what)


def _tell(parent: Parent, stage: Stage) -> None:
    parent.tell("stage", **stage.to_event())
