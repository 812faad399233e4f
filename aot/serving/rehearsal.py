"""Rehearsal: packages of others run first in a process of their own, on tensors made up for them. One that dies takes nobody with it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from aot.artifact.borrowed import BorrowedLibrary, unanswered
from aot.artifact.guard import Guard
from aot.artifact.kernels import Installed
from aot.artifact.kinds import PACKAGE, PACKAGES
from aot.artifact.ledger import Ledger
from aot.artifact.opened import run_directory, unpack
from aot.artifact.operators import are_here, registrar
from aot.artifact.packaged import Packaged
from aot.artifact.runner import device_here
from aot.cache_store.errors import Corrupt, Malformed
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted
from aot.compiler.process import Parent
from aot.errors import LoadFailed
from aot.machine.device import choose_ordinal, current_ordinal, wait_for_device
from aot.machine.target import Target
from aot.model.signature import TensorSpec, dtype_named
from aot.serving.canary import answer_of, note_of, read_note, write_note

SECONDS = 300  # after which it is taken for dead: a block takes some seconds
_Registrar: TypeAlias = tuple[str, bool]  # a module's name or a library's file, and whether it is a module
_REMEDY = "ask its author; `aot restore` is not needed, nothing of it was loaded."


def read_packages(store: Store, admitted: Admitted, ledger: Ledger) -> dict[str, Packaged]:
    """The packages of an artifact by their place, every byte verified. Raises Corrupt, Missing, TimedOut."""
    layer = admitted.manifest.layer(PACKAGES)
    if layer is None:
        raise Corrupt(f"artifact {admitted.digest.short} has no packages.", culprit=str(admitted.digest))
    with run_directory("aot-packages-") as directory:
        unpack(store, admitted, layer=layer, into=directory, ledger=ledger)
        return _read(directory, admitted.digest.short)


def _read(directory: Path, what: str) -> dict[str, Packaged]:
    found = {}
    for path in sorted(directory.rglob(PACKAGE)):
        place = path.parent.relative_to(directory).as_posix()
        try:
            found[place] = Packaged.read(path.read_bytes())
        except Malformed as error:
            raise Corrupt(f"artifact {what}: {place}: {error.message}", culprit="") from error
    return found


def rehearse(
    store: Store, admitted: Admitted, *, here: Target, guard: Guard, environ: Mapping[str, str] = os.environ, again: bool = False
) -> None:
    """Open and run every package in a process of its own. One that came back is remembered, for this very target, and not run again
    unless `again`. Raises LoadFailed when it did not come back, or asks for what this torch does not have; Corrupt, Missing."""
    digest = admitted.digest
    note = note_of(guard, digest, here)
    if not again and read_note(note) is not None:
        return
    layer = admitted.manifest.layer(PACKAGES)
    assert layer is not None
    with run_directory("aot-rehearsal-") as directory:
        unpack(store, admitted, layer=layer, into=directory, ledger=Ledger())
        others = set[_Registrar]()
        for place, packaged in _read(directory, digest.short).items():
            others |= _registrars(packaged, f"{place} of artifact {digest.short}")
            if missing := unanswered(packaged.needs):
                raise LoadFailed(
                    f"{place} of artifact {digest.short} asks for {missing[0]}{_more(missing)}, which torch {here.torch} does not have.",
                    remedy="it was made with another torch: ask its author for one of this.",
                )
        _run(directory, here, environ, f"artifact {digest.short}", others)
    write_note(note, {"error": 0.0, "target": str(here)})


def _registrars(packaged: Packaged, what: str) -> set[_Registrar]:
    """What this process has the operators of others from: a package does not say whose they are, and none is fetched for it.

    Raises LoadFailed where it does not have them, or they are in Python that only this process can run.
    """
    found = set()
    for namespace, operators in packaged.operators.items():
        if not are_here(namespace, operators):
            raise LoadFailed(
                f"{what} calls {namespace}::{operators[0]}, which nothing has registered in this process.",
                remedy="load what registers it first, kernels.get_kernel(...) for a kernel of the Hub.",
            )
        file = registrar(namespace, operators)
        installed = Installed.of(file) if file else None
        if file is None or (file.suffix == ".py" and not installed):
            raise LoadFailed(
                f"{what} calls {namespace}::{operators[0]}, of {file or 'nobody known'}: a process of its own would not have it.",
                remedy="put what registers it into a library, or a package that is installed.",
            )
        found.add((installed.module, True) if installed else (str(file), False))
    return found


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _run(directory: Path, here: Target, environ: Mapping[str, str], what: str, others: set[_Registrar]) -> None:
    message = {
        "directory": str(directory),
        "device": here.device,
        "ordinal": current_ordinal(here.device),
        "registrars": sorted(others),
    }
    failed = f"{what} did not come back from a process of its own", f"{what} ended a process of its own without an answer.", _REMEDY
    answer_of("rehearsal", message, log=directory / "rehearsal.log", environ=environ, seconds=SECONDS, failed=failed)


def perform(message: Mapping[str, Any], parent: Parent) -> None:
    """What that process does: open, bind, run."""
    device = str(message["device"])
    choose_ordinal(device, message["ordinal"])
    here = device_here(device)
    for name, is_module in message["registrars"]:
        if is_module:
            importlib.import_module(name)
        else:
            torch.ops.load_library(name)  # type: ignore[no-untyped-call]
    for packaged in _read(Path(message["directory"]), "rehearsed").values():
        library = BorrowedLibrary(packaged, here)
        weights = [_made_up(spec) for _, spec in packaged.weights]
        # what the library itself checks of its inputs it says by raising: a message that this process lives to tell
        os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
        library.run(weights, [_made_up(given.least(device)) for given in packaged.inputs])
        wait_for_device()
    parent.tell("done")


def _made_up(spec: TensorSpec) -> torch.Tensor:
    """Small numbers; of integers, which may be places in something, zeros."""
    tensor = spec.zeros()
    if dtype_named(spec.dtype).is_floating_point and not spec.overlaps and tensor.element_size() > 1:
        tensor.normal_(std=0.02)
    return tensor
