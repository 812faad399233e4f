"""Graphs: what a build's own processes do. Compile a plan's units, check them against eager, fill a cache directory."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import torch

from aot.artifact.book import FILE, Book, GraphEntry, Kind
from aot.artifact.cubin import architectures
from aot.artifact.golden import FILE as GOLDEN
from aot.artifact.golden import Golden
from aot.artifact.kernels import described, kernels_of
from aot.artifact.kinds import SPACES
from aot.artifact.operators import beside
from aot.artifact.promise import holds
from aot.artifact.runner import Graph
from aot.building.check import Measured, check_alone, check_graphs, timed
from aot.building.compiling import at_once, configuration, tensors_for
from aot.building.plan import Plan, Unit, along_axes
from aot.building.reference import reference
from aot.building.spaces import PackageGraph, Packages
from aot.cache_store.digest import Digest
from aot.compiler.inductor import Traced, check_options, compile_graph, jit, prepare_forks
from aot.compiler.parallel import in_forks, peak_memory
from aot.compiler.process import Parent
from aot.compiler.stage import Stage, stage
from aot.errors import BuildFailed, OutsideTolerance, Unsupported
from aot.machine.device import Device, open_device
from aot.machine.settings import claim, complete
from aot.machine.sku import CPU
from aot.machine.target import Target
from aot.model.axes import Axes
from aot.model.signature import TensorSpec
from aot.model.slots import is_slot
from aot.model.weights import LiveWeights
from aot.request.compilation import Compilation
from aot.serving.standin import Compiled
from aot.shipping.spaces import about

Planned: TypeAlias = Callable[[Device], Plan]


def compile_artifact(planned: Planned, request: Compilation, directory: Path, parent: Parent) -> None:
    """Fill `directory` with the files of the graph layer. The parent hears the key first and answers whether to go on."""
    check_options(request.options)
    claim("this build", complete(request.options.process))
    with open_device(request.gpu, simulate=request.simulate) as device:
        _compile_on(device, planned, request, directory, parent)


def _compile_on(device: Device, planned: Planned, request: Compilation, directory: Path, parent: Parent) -> None:
    with _stage(parent, "capture the pipeline's calls"):
        plan = planned(device)
    if request.layout:
        Packages.of(plan, request.scope)
    parent.tell("key", parts=dict(plan.key.parts), units=list(map(str, plan.units)), versions=_versions(device))
    if parent.receive() != "go":
        return
    measured: Measured = {"compile_s": {}, "weights_in_graphs": plan.covered()}
    if plan.left:
        measured["left"] = dict(plan.left)
    if plan.slots:
        measured["lora"] = {"rank": request.lora_rank, "slots": {path: list(found) for path, found in plan.slots.items()}}
    numbers = count()  # of libraries: a name that this process has opened stands for what it opened
    plan, book = _compile(plan, request, device, directory, parent, measured, numbers)
    packages = _packages(plan, book, request, device, directory, parent, measured) if request.layout else []
    certificate: dict[str, Any]
    if device.simulated:
        with _stage(parent, "run the eager model on the CPU for golden outputs"):
            golden = reference(plan, book, device)
        why = f"built without its GPU: nothing was run on {Target.named(request.gpu).sku}"
        certificate = {"unchecked": why, "golden": golden if isinstance(golden, str) else "of the eager model, on a CPU in float32"}
    else:
        try:
            certificate, book, graphs = _checked(plan, book, request, device, directory, parent, measured)
        except OutsideTolerance as error:
            if request.layout or not any(unit.dynamic for unit in plan.units):
                raise
            # a graph along axes is wrong somewhere, which no condition told: each call gets its own
            for file in directory.iterdir():
                file.unlink()
            measured = {**measured, "compile_s": {}, "apart": {"all that was left open": error.message}}
            plan, book = _compile(plan.apart(), request, device, directory, parent, measured, numbers)
            certificate, book, graphs = _checked(plan, book, request, device, directory, parent, measured)
        with _stage(parent, "check packages for Spaces") if packages else nullcontext():
            found = check_alone(plan, book, packages, request.options.mode)
            certificate["calls"] += [{**one, "call": f"for Spaces, {one['call']}"} for one in found]
        with _stage(parent, "record golden outputs"):
            golden = Golden.record(book, {graph.entry.file: graph.run_flat for graph in graphs})
    (directory / FILE).write_bytes(book.encode())
    if isinstance(golden, Golden):
        (directory / GOLDEN).write_bytes(golden.encode())
    measured["memory"] = {"peak_bytes": peak_memory()}
    parent.tell("done", measured=measured, certificate=certificate, kernels=_kernels(book, directory))


def _kernels(book: Book, directory: Path) -> dict[str, str]:
    """Whose operators the graphs call."""
    return described(path.read_bytes() for entry in book.graphs if (path := beside(directory / entry.file)).exists())


def _packages(
    plan: Plan, book: Book, request: Compilation, device: Device, directory: Path, parent: Parent, measured: Measured
) -> list[PackageGraph]:
    """The same once more as Spaces load it, in a directory beside."""
    found, beside = Packages.of(plan, request.scope), directory.parent / SPACES
    found.check(book)

    def told(folder: str, seconds: float | None) -> None:
        _tell(parent, Stage(f"compile {folder} for Spaces", seconds))

    config = partial(about, plan.key, kernels=kernels_of(_kernels(book, directory)))
    measured["package_s"] = found.compile(request, device, beside, told, config)
    measured["packages"] = {folder: unit.component for folder, unit in found.units.items()}
    return found.graphs(book, beside)


def _checked(
    plan: Plan, book: Book, request: Compilation, device: Device, directory: Path, parent: Parent, measured: Measured
) -> tuple[dict[str, Any], Book, list[Graph]]:
    with _stage(parent, "check against eager"):
        graphs = [Graph(entry, directory / entry.file, device=device.type) for entry in book.graphs]
        return *check_graphs(plan, book, graphs, device=device.type, mode=request.options.mode, measured=measured), graphs


def fill_cache(planned: Planned, request: Compilation, parent: Parent) -> None:
    """Run every call asked for through torch.compile once; TORCHINDUCTOR_CACHE_DIR is then the cache layer's content.

    Compiled are the same submodules that the graphs are about: what a dispatcher falls back to must be what is warm. Slots are none of
    them: the fallback is what peft itself computes.
    """
    claim("this build", complete(request.options.process))
    plan = planned(Device.of(request.gpu))
    for site in plan.sites():
        Compiled(site, partial(jit, options=request.options)).put()
    for call in plan.calls:
        with _stage(parent, f"torch.compile {call.component} for the cache layer"), torch.inference_mode():
            timed(plan, call)
    parent.tell("done")


def _versions(device: Device) -> dict[str, str]:
    """Of what compiles; triton and CUDA where they take part."""
    found = {"torch": torch.__version__, "diffusers": version("diffusers"), "python": platform.python_version()}
    return found if device.type == CPU else {**found, "triton": version("triton"), "cuda": str(torch.version.cuda)}


@dataclass(frozen=True, slots=True)
class _Compiled:
    """What compiling one unit gave, beside its library; or why several calls cannot have one graph."""

    traced: Traced | None
    weights: tuple[tuple[str, TensorSpec], ...] = ()
    seconds: float = 0.0
    cubins: dict[str, int] = field(default_factory=dict)
    reason: str = ""


def _compile(
    plan: Plan, request: Compilation, device: Device, directory: Path, parent: Parent, measured: Measured, numbers: Iterator[int]
) -> tuple[Plan, Book]:
    """Compile every unit; then, by themselves, the calls that a graph along axes was found not to serve. Returns the plan with the
    units that there are graphs of, in the order of the book's."""
    entries, kinds, frozen, done = list[GraphEntry](), dict[Digest, Kind](), request.options.mode.freezing, list[Unit]()
    units, apart = plan.units, dict[str, str]()
    while units:
        files = [f"{unit.component}-{next(numbers)}.so" for unit in units]
        left = list[Unit]()
        rounds = _compile_round(plan, units, files, request, device, directory, parent)
        trusted = [_trusted(unit, one, compared=not device.simulated) for unit, one in zip(units, rounds, strict=True)]
        for unit, file, one in zip(units, files, trusted, strict=True):
            left += _left(unit, one)
            if one.traced is None:
                apart[str(unit)] = one.reason
                (directory / file).unlink(missing_ok=True)
                continue
            code = kinds[unit.kind].code | one.traced.code if unit.kind in kinds else one.traced.code
            of, traced, where = plan.kinds[unit.kind], one.traced, (unit.component, unit.paths, unit.kind, file)
            weights, slots = (tuple(named for named in one.weights if is_slot(named[0]) is slot) for slot in (False, True))
            kinds[unit.kind] = Kind(of.fingerprint, weights, code, of.unread)
            entries.append(GraphEntry(*where, unit.signature, traced.outputs, traced.served, frozen, traced.writes, traced.mutates, slots))
            done.append(unit)
            measured["compile_s"][file] = one.seconds
            if one.cubins:
                measured.setdefault("cubins", {})[file] = one.cubins
        units = left
    if apart:
        measured["apart"] = apart
    components = {path: fingerprint.digest for path, fingerprint in plan.fingerprints.items()}
    for fingerprint in plan.fingerprints.values():  # in regional scope no graph is of a component's kind: kept to explain a miss
        kinds.setdefault(fingerprint.digest, Kind(fingerprint))
    return replace(plan, units=done), Book(tuple(entries), components, kinds)


def _compile_round(
    plan: Plan, units: list[Unit], files: list[str], request: Compilation, device: Device, directory: Path, parent: Parent
) -> list[_Compiled]:
    """Compile these, several at once."""
    work = [partial(_compile_unit, plan, request, device, unit, directory / file) for unit, file in zip(units, files, strict=True)]
    if device.type == CPU:
        prepare_forks()
    found: dict[int, _Compiled] = {}

    def told(place: int, seconds: float | None = None) -> None:
        unit = units[place]
        _tell(parent, Stage(f"compile graph {place + 1} of {len(work)}, {unit}", seconds, component=unit.component))

    for place, compiled in in_forks(work, at_once=at_once(device), begun=told):
        found[place] = compiled
        told(place, compiled.seconds)
    return [found[place] for place in range(len(units))]


def _trusted(unit: Unit, one: _Compiled, *, compared: bool) -> _Compiled:
    """With the conditions that the compiler suspects, but for those that a call breaks which is compared with eager: most choose how
    to compute, and a few decide whether it is right. Where nothing is compared all are kept."""
    if one.traced is None or not one.traced.suspected or unit.dynamic is None or one.traced.served is None:
        return one
    served, kept = one.traced.served, one.traced.suspected
    try:
        if compared:
            calls = [served.values(found) for found in (*unit.dynamic.signatures, *served.ends()) if served.refuses(found) is None]
            kept = tuple(condition for condition in kept if all(holds(condition, values or {}) for values in calls))
        served = replace(served, conditions=(*served.conditions, *kept))
        served.check()
    except (Unsupported, KeyError) as error:  # a condition that nobody could look at later
        return _Compiled(None, seconds=one.seconds, reason=f"a condition cannot be checked at a call: {error}")
    return replace(one, traced=replace(one.traced, served=served))


def _left(unit: Unit, one: _Compiled) -> list[Unit]:
    """The calls of a unit that its graph does not serve: of those along axes along axes of their own, or each by itself where that
    graph serves none; and those of other layouts where it writes to what it is given."""
    others = unit.others if one.traced is None or one.traced.mutates else ()
    return list(map(unit.alone, others)) + (_off_axes(unit, unit.dynamic, one) if unit.dynamic else [])


def _off_axes(unit: Unit, axes: Axes, one: _Compiled) -> list[Unit]:
    served = one.traced.served if one.traced else None
    apart = [found for found in axes.signatures if served is None or served.refuses(found)]
    alone = list(map(unit.alone, apart))
    return along_axes(alone) if len(alone) < len(axes.signatures) else alone


def _compile_unit(plan: Plan, request: Compilation, device: Device, unit: Unit, library: Path) -> _Compiled:
    started, module = time.perf_counter(), plan.kinds[unit.kind].module
    how = configuration(request, device)
    with tensors_for(unit, module, device, library.stem) as tensors:
        try:
            traced = compile_graph(module, unit.signature, tensors, dynamic=unit.dynamic, configuration=how, library=library)
        except (BuildFailed, Unsupported) as error:
            if unit.dynamic is None:
                raise
            traceback.print_exc()
            library.unlink(missing_ok=True)
            return _Compiled(None, seconds=round(time.perf_counter() - started, 3), reason=error.message)
        live = LiveWeights(module)
        weights = () if how.frozen else tuple(zip(live.names, live.specs(), strict=True))
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


def _stage(parent: Parent, what: str) -> AbstractContextManager[None]:
    return stage(partial(_tell, parent), what)


def _tell(parent: Parent, stage: Stage) -> None:
    parent.tell("stage", **stage.to_event())
