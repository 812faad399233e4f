"""Spaces: the packages of a build as ZeroGPU Spaces look for them: one for each class of repeated block, or one of a whole component.

`spaces.aoti_blocks_load` takes `{BlockClass}/package.pt2` for every class that the model names in `_repeated_blocks`, and puts it into
all modules of that class; `spaces.aoti_load` takes `package/root/package.pt2` for the module that it is given.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from aot.artifact.book import Book, GraphEntry
from aot.artifact.kinds import PACKAGE
from aot.building.compiling import at_once, configuration, tensors_for
from aot.building.plan import Plan, Unit
from aot.cache_store.digest import Digest
from aot.compiler.package import compile_package, load_package
from aot.compiler.parallel import in_forks
from aot.errors import BadInput, Unsupported
from aot.machine.device import Device
from aot.model.axes import Axes
from aot.model.convention import Convention, Written
from aot.model.signature import Signature
from aot.model.writes import SAME, Results
from aot.request.compilation import Compilation
from aot.shipping.spaces import CONFIG

ROOT = "package/root"
Config: TypeAlias = Callable[[dict[str, str]], bytes]  # of the calls that the package in each folder serves


@dataclass(frozen=True, slots=True)
class Packages:
    """The units that have one, by the folder that it lies in."""

    units: dict[str, Unit]
    kinds: dict[str, nn.Module]
    written: dict[str, Written]

    @classmethod
    def of(cls, plan: Plan, scope: str) -> Packages:
        """Raises BadInput where a folder would have room for one of several, Unsupported where a Space would look for more, or put one
        into what it was not made from."""
        if scope == "whole":
            if len(plan.modules) > 1:
                names = ", ".join(plan.modules)
                raise BadInput(
                    f"--layout spaces with --scope whole: there is one package, and {len(plan.modules)} components: {names}.",
                    remedy="choose one with --components, or --scope regional.",
                )
            if any(unit.paths != ("",) for unit in plan.units):
                raise Unsupported(
                    f"--layout spaces: {next(iter(plan.modules))} reads tensors' numbers, so parts of it are compiled and not the whole.",
                    remedy="choose --scope regional.",
                )
            found = {ROOT: plan.units}
        else:
            found = _blocks(plan)
        for folder, units in found.items():
            if any(_what(unit) != _what(units[0]) for unit in units):  # two denoisers of one class share theirs
                raise BadInput(
                    f"--layout spaces: {folder} has room for one graph, and there are {len(units)}: {'; '.join(map(str, units))}.",
                    remedy="build for one size and batch, or --dynamic for a range of sizes.",
                )
        chosen = {folder: units[0] for folder, units in found.items()}
        written = {folder: _written(plan, folder, units) for folder, units in found.items()}
        return cls(chosen, {folder: plan.kinds[unit.kind].module for folder, unit in chosen.items()}, written)

    def check(self, book: Book) -> None:
        """Raises Unsupported for graphs whose answer a Space would lose, or that it would give other tensors than they take."""
        served = {(unit.kind, unit.signature): folder for folder, unit in self.units.items()}
        for entry in book.graphs:
            folder = served.get((entry.kind, entry.signature))
            if folder and entry.writes != SAME:
                raise Unsupported(
                    f"--layout spaces: {folder} writes into lists or dicts that it is given, which a package does not.",
                    remedy="leave that component out: --components.",
                )
            if folder and self.units[folder].others:
                raise Unsupported(
                    f"--layout spaces: {folder} is called with tensors that lie in memory in several ways; a package reads one.",
                    remedy="record one call, or choose --scope whole and one component.",
                )

    def compile(
        self, request: Compilation, device: Device, directory: Path, told: Callable[[str, float | None], None], config: Config
    ) -> dict[str, float]:
        """Compile each into the directory, beside what they are for; returns the seconds that each took."""
        folders = list(self.units)
        work = [partial(self._compile, folder, request, device, directory / folder / PACKAGE) for folder in folders]
        seconds = dict[str, float]()
        for place, took in in_forks(work, at_once=at_once(device), begun=lambda place: told(folders[place], None)):
            seconds[folders[place]] = took
            told(folders[place], took)
        calls = {folder: str(unit.dynamic or unit.signature) for folder, unit in self.units.items()}
        (directory / CONFIG).write_bytes(config(calls))
        return seconds

    def _compile(self, folder: str, request: Compilation, device: Device, package: Path) -> float:
        started, unit, module = time.perf_counter(), self.units[folder], self.kinds[folder]
        with tensors_for(unit, module, device, folder.replace("/", "-")) as tensors:
            compile_package(
                module,
                unit.signature,
                self.written[folder],
                tensors,
                dynamic=unit.dynamic,
                configuration=configuration(request, device),
                package=package,
            )
        return round(time.perf_counter() - started, 3)

    def graphs(self, book: Book, directory: Path) -> list[PackageGraph]:
        """Each as what can be compared with eager."""
        entries = {(entry.kind, entry.signature): entry for entry in book.graphs}
        found = [(folder, entries[unit.kind, unit.signature]) for folder, unit in self.units.items()]
        return [
            PackageGraph(entry, directory / folder / PACKAGE, self.kinds[folder], self.written[folder], len(book.inputs(entry)))
            for folder, entry in found
        ]


class PackageGraph:
    """A package that answers as a graph does: to the weights, which it has already, and the call's tensors."""

    def __init__(self, entry: GraphEntry, package: Path, module: nn.Module, written: Written, weights: int) -> None:
        """`weights`: how many inputs come before those of a call."""
        self.entry, self._package, self._module, self._written, self._weights = entry, package, module, written, weights

    @cached_property
    def _model(self) -> Callable[..., object]:
        return load_package(self._package, self._module)

    def run_flat(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        tensors = inputs[self._weights :]
        call = self.entry.signature.call(tensors)
        args, kwargs = Convention(self._module.forward).written(*call, self._written)
        return Results.of(self._model(*args, **kwargs), call, self.entry.signature.form, tensors).tensors


def _what(unit: Unit) -> tuple[Digest, Signature, Axes | None]:
    """What makes two units the same graph."""
    return unit.kind, unit.signature, unit.dynamic


def _written(plan: Plan, folder: str, units: list[Unit]) -> Written:
    """How what a package stands for is called. Raises Unsupported where that is done in several ways, of which it takes one."""
    ways = set[Written]()
    for unit in units:
        for call in (call for call in plan.calls if call.component == unit.component):
            blocks = (block.written for block in call.blocks if block.path in unit.paths)
            ways.update(call.written if unit.paths == ("",) else filter(None, blocks))
    if len(ways) != 1:
        said = "it is not known how it is called" if not ways else f"it is called in {len(ways)} ways, by place and by name"
        raise Unsupported(f"--layout spaces: {folder}: {said}, and a package takes one.", remedy="record the pipeline's call again.")
    return ways.pop()


def _blocks(plan: Plan) -> dict[str, list[Unit]]:
    """The units of repeated blocks by their class, as a Space asks for them."""
    found: dict[str, list[Unit]] = defaultdict(list)
    for unit in plan.units:
        if unit.paths != ("",):
            found[type(plan.kinds[unit.kind].module).__name__].append(unit)
    asked = [name for module in plan.modules.values() for name in getattr(module, "_repeated_blocks", None) or ()]
    if missing := [name for name in asked if name not in found]:
        raise Unsupported(
            f"--layout spaces: a Space looks for {', '.join(missing)} too, of which nothing is compiled here.",
            remedy="choose --scope whole and one component.",
        )
    if not asked:
        raise Unsupported("--layout spaces: no component names repeated blocks.", remedy="choose --scope whole and one component.")
    kept = {name: units for name, units in found.items() if name in asked}
    for name, units in kept.items():
        _check_all(plan, name, units)
    return kept


def _check_all(plan: Plan, name: str, units: list[Unit]) -> None:
    """Raises Unsupported where a Space would put a package into blocks that it was not made from."""
    components = {unit.component for unit in units}
    named = {(one, path) for one in components for path, module in plan.modules[one].named_modules() if type(module).__name__ == name}
    for unit in units:
        if left := named - {(one.component, path) for one in units if one.kind == unit.kind for path in one.paths}:
            where = ".".join(min(left))
            raise Unsupported(
                f"--layout spaces: not all {name} are alike: {where} differs, and a Space puts one package into all.",
                remedy="choose --scope whole and one component.",
            )
