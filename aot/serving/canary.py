"""Canary: a process that runs an artifact's graphs first, where nobody promises that they compute here what they did at their build."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aot.artifact.book import FILE as BOOK
from aot.artifact.book import Book
from aot.artifact.certificate import golden_tolerance
from aot.artifact.golden import FILE, Golden
from aot.artifact.guard import Guard
from aot.artifact.kernels import kernels_of
from aot.artifact.kinds import GRAPH
from aot.artifact.ledger import Ledger
from aot.artifact.opened import run_directory, unpack
from aot.artifact.runner import Graph
from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError, Corrupt, Malformed
from aot.cache_store.manifest import Manifest
from aot.cache_store.plain import read_plain
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted
from aot.compiler.process import Event, Parent, Process
from aot.errors import LoadFailed
from aot.machine.device import choose_ordinal, current_ordinal
from aot.machine.settings import claim
from aot.machine.target import Target
from aot.request.mode import Mode

_REMEDY = "build it for this torch: `aot build --torch`."
SECONDS = 600  # after which a canary is taken for dead: a model of the largest kind takes one, on a CPU


def send(
    store: Store, admitted: Admitted, *, here: Target, guard: Guard, environ: Mapping[str, str] = os.environ, again: bool = False
) -> float:
    """Run every graph of the artifact in a process of its own and return its largest relative L2 error against its golden outputs.

    One that passed is remembered, for this very target, and not sent again unless `again`. Raises LoadFailed when it did
    not come back, came back with other numbers, or the artifact has no golden outputs; Corrupt, Missing for its bytes.
    """
    digest, manifest = admitted.digest, admitted.manifest
    allowed = allowed_error(manifest)
    note = note_of(guard, digest, here)
    if not again and (remembered := read_note(note)) is not None:
        return remembered
    with run_directory("aot-canary-") as directory:
        _materialise(store, admitted, directory)
        error = _sing(directory, manifest, here, environ)
    if not error <= allowed:
        raise LoadFailed(
            f"artifact {digest.short}: its graphs differ from their golden outputs by {error:.1e} on {here}, allowed are {allowed:.0e}.",
            remedy=_REMEDY,
        )
    write_note(note, {"error": error, "target": str(here)})
    return error


def note_of(guard: Guard, digest: Digest, here: Target) -> Path:
    """Where it is remembered that an artifact came back on this very target."""
    return guard.home / "canary" / f"{digest.hex}-{Digest.of(encode(str(here))).short}.json"


def read_note(note: Path) -> float | None:
    """The error that a canary came back with before; None where nothing can be read."""
    try:
        return float(json.loads(read_plain(note))["error"])
    except (OSError, ValueError, KeyError, TypeError, Corrupt):
        return None


def write_note(note: Path, value: dict[str, Any]) -> None:
    """At once or not at all; where it cannot be written, another canary is sent the next time."""
    temporary = note.with_name(f"{note.name}.{os.getpid()}")
    with suppress(OSError):
        note.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.write_text(json.dumps(value))
        temporary.replace(note)


def allowed_error(manifest: Manifest) -> float:
    """The largest relative L2 error against its golden outputs that an artifact may have."""
    return golden_tolerance(Mode.parse(manifest.key["mode"]), _widest(manifest), of_eager="unchecked" in manifest.certificate)


def _widest(manifest: Manifest) -> str:
    """The dtype whose tolerance holds: the components' own, the least exact of them."""
    found = {value for name, value in manifest.key.items() if name.startswith("component/") and name.endswith("/dtype")}
    return next((dtype for dtype in ("bfloat16", "float16", "float32") if dtype in found), "float32")


def _materialise(store: Store, admitted: Admitted, directory: Path) -> None:
    digest, manifest = admitted.digest, admitted.manifest
    layer = manifest.layer(GRAPH)
    files = manifest.files_of(layer) if layer else []
    if layer is None or FILE not in {entry.path for entry in files}:
        why = manifest.certificate.get("golden") or manifest.certificate.get("unchecked", "it is of an older version of aot")
        raise LoadFailed(f"artifact {digest.short} has no golden outputs: {why}.", remedy=_REMEDY)
    unpack(store, admitted, layer=layer, into=directory, ledger=Ledger())


def _sing(directory: Path, manifest: Manifest, here: Target, environ: Mapping[str, str]) -> float:
    # the settings that the golden outputs were recorded under, and the very device that will serve
    settings = {name.removeprefix("process."): value == "true" for name, value in manifest.key.items() if name.startswith("process.")}
    message = {
        "directory": str(directory),
        "device": here.device,
        "ordinal": current_ordinal(here.device),
        "settings": settings,
        "producer": manifest.producer,
    }
    lost, silent = "the canary did not come back", "the canary came back without an answer."
    done = answer_of("canary", message, log=directory / "canary.log", environ=environ, seconds=SECONDS, failed=(lost, silent, _REMEDY))
    return float(done["error"])


def answer_of(
    task: str, message: Mapping[str, Any], *, log: Path, environ: Mapping[str, str], seconds: int, failed: tuple[str, str, str]
) -> Event:
    """What a process of its own has done. Raises LoadFailed where it does not come back, or without an answer: in the words of `failed`,
    with its remedy."""
    lost, silent, remedy = failed
    try:
        with Process(task, message, log=log, environ=environ, seconds=seconds) as child:
            for event in child.events():
                if event["event"] == "done":
                    return event
    except CodedError as error:
        raise LoadFailed(f"{lost}: {error.message}", remedy=remedy) from error
    raise LoadFailed(silent, remedy=remedy)


def sing(message: Mapping[str, Any], parent: Parent) -> None:
    """What the canary does: run, compare, tell."""
    directory, device = Path(message["directory"]), str(message["device"])
    claim("this canary", message["settings"])
    choose_ordinal(device, message["ordinal"])
    try:
        book, golden = Book.parse((directory / BOOK).read_bytes()), Golden.read(directory / FILE)
    except (Malformed, KeyError, TypeError, ValueError) as error:
        raise LoadFailed(f"its golden outputs cannot be read: {error}") from error
    for kernel in kernels_of(message["producer"]):
        kernel.load()
    runs = {entry.file: Graph(entry, directory / entry.file, device=device).run_flat for entry in book.graphs}
    parent.tell("done", error=golden.error(book, runs))
