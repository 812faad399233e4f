"""Build: one artifact, from a request to a commit in a store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from aot.artifact.key import Key
from aot.artifact.kinds import CACHE, GRAPH, SPACES
from aot.building.estimate import expected_seconds
from aot.cache_store.digest import Digest
from aot.cache_store.layer import pack
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import FileEntry, Layer, Manifest
from aot.cache_store.signing import SigningKey, merge
from aot.cache_store.store import Ref
from aot.compiler.isolated import Interpreter
from aot.compiler.process import Event, Process
from aot.compiler.stage import Progress, Stage, stage
from aot.compiler.toolchain import find_compiler, strip, write_compiler
from aot.compiler.toolkit import find_toolkit, toolkit_environment
from aot.environment import INDUCTOR_DIRECTORY, signing_key
from aot.errors import BadEnvironment, BuildFailed
from aot.machine.sku import CPU
from aot.machine.target import Target
from aot.request.compilation import Compilation
from aot.request.recorded import Recorded
from aot.request.request import Request
from aot.version import VERSION

# Inductor's own bookkeeping of one machine, worthless elsewhere: lock files, and C++ headers it precompiled for itself
_NOT_SHIPPED = ("locks", "precompiled_headers", "tmp")


class Source(Protocol):
    """What a build is made from, where that is no recipe: a Record, or what one is made of."""

    def message(self, work: Path) -> dict[str, Any]:
        """What the process that builds must know of it; files for it are put into the folder `work`."""
        ...


@dataclass(frozen=True, slots=True)
class Built:
    """A build's outcome. `fresh` is False when the store held the artifact already."""

    ref: Ref
    digest: Digest
    manifest: Manifest
    fresh: bool
    log: Path


def build(
    request: Request | Recorded,
    store: LocalStore,
    *,
    source: Source | None = None,
    progress: Progress,
    environ: Mapping[str, str],
    rebuild: bool = False,
    interpreter: Interpreter | None = None,
) -> Built:
    """Build the artifact that `request` asks for, of a recipe or of `source`, and commit it to `store`; the store's own
    if it is there already.

    Compilation runs in fresh processes with fresh compiler caches; what they print goes to a log beside the store. Two builds
    of one key at once make one artifact. On any error, or when killed, nothing is stored. `interpreter`: the Python, and so
    the torch, to compile with; by default this process's own. Raises CodedError.
    """
    if any(map(str.isspace, str(store.root))):
        raise BadEnvironment(
            f"the store's path {str(store.root)!r} holds a blank, and torch's compiler writes it into commands that break there.",
            remedy="build with AOT_HOME at a path without blanks; serving, pulling and pushing take any.",
        )
    keys = signing_keys(store.root, environ)
    with _planning(request, store, source, environ=environ, interpreter=interpreter, progress=progress) as planning:
        key, ref, events = planning.key, planning.ref, planning.events
        with store.building(ref) as waited:
            present = store.resolve(ref)
            if present and (waited or not rebuild):
                planning.child.send("stop")
                return Built(ref, present, Manifest.parse(store.manifest(present)), fresh=False, log=planning.log)
            planning.child.send("go")
            took = expected_seconds(store, key.parts)
            done = wait_for(events, "done", lambda found: progress(replace(found, expected=took.get(found.component))))
            kinds = [GRAPH]
            if request.cache_layer:
                planning.fill_cache(progress)
                kinds.append(CACHE)
            if request.layout:
                kinds.append(SPACES)
            producer = {
                **_producer(),
                **planning.versions,
                **done["kernels"],
                "cold_build": f"{time.perf_counter() - planning.started:.1f}",
            }
            with stage(progress, "pack and store"):
                manifest, blobs = _pack(planning.work, kinds, key=key, name=request.name, done=done, producer=producer)
                digest = store.commit(ref, manifest.encode(), blobs, envelope=_signed(manifest.encode(), keys))
    return Built(ref, digest, manifest, fresh=True, log=planning.log)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a build would make: its artifact, the graphs in words, and whether the store has it. `seconds` a graph, by component,
    are those of the build that was most like it; empty where there was none."""

    ref: Ref
    key: Key
    graphs: tuple[str, ...]
    present: Digest | None
    seconds: Mapping[str, float]


def plan(
    request: Request | Recorded,
    store: LocalStore,
    *,
    source: Source | None = None,
    progress: Progress,
    environ: Mapping[str, str],
    interpreter: Interpreter | None = None,
) -> Planned:
    """What `build` would do. Nothing is compiled or stored. Raises CodedError."""
    with _planning(request, store, source, environ=environ, interpreter=interpreter, progress=progress) as found:
        found.child.send("stop")
        return Planned(found.ref, found.key, found.graphs, store.resolve(found.ref), expected_seconds(store, found.key.parts))


@dataclass(frozen=True, slots=True)
class _Planning:
    """A build whose process has said what it will compile, and waits to be told to go on."""

    child: Process
    events: Iterator[Event]
    key: Key
    ref: Ref
    graphs: tuple[str, ...]
    versions: dict[str, str]
    work: Path
    log: Path
    started: float
    message: dict[str, Any]
    environ: Mapping[str, str]
    python: str

    def fill_cache(self, progress: Progress) -> None:
        _fill_cache(self.message, self.work / CACHE, log=self.log, environ=self.environ, python=self.python, progress=progress)


@contextmanager
def _planning(
    request: Request | Recorded,
    store: LocalStore,
    source: Source | None,
    *,
    environ: Mapping[str, str],
    interpreter: Interpreter | None,
    progress: Progress,
) -> Iterator[_Planning]:
    compiled_by = interpreter or Interpreter()
    environ = compiled_by.environment(environ)
    log = _log(store, request)
    with store.temporary() as work:
        graphs = work / GRAPH
        graphs.mkdir()
        started = time.perf_counter()
        message: dict[str, Any] = {"request": request.to_json(), "directory": str(graphs)}
        if source:
            message |= source.message(work)
        compiling = {**fresh(environ, work / "inductor"), **_tools(request, store.root / "toolchain", environ, compiled_by)}
        with Process("graphs", message, log=log, environ=compiling, python=compiled_by.python) as child:
            events = child.events()
            told = wait_for(events, "key", progress)
            key, units = Key(told["parts"]), tuple(told["units"])
            ref = Ref(request.name, key.digest)
            yield _Planning(child, events, key, ref, units, told["versions"], work, log, started, message, environ, compiled_by.python)


def check_host(request: Compilation, environ: Mapping[str, str], interpreter: Interpreter | None = None) -> None:
    """Raises BadEnvironment or BadInput when this host cannot build `request`. Imports no torch: a wrong host is told at once."""
    find_compiler(environ)
    if interpreter is None:
        Target.named(request.gpu)
    if request.gpu != CPU:
        find_toolkit(environ, (interpreter or Interpreter()).path, nvcc=bool(request.also))


def _tools(request: Compilation, directory: Path, environ: Mapping[str, str], interpreter: Interpreter) -> dict[str, str]:
    """The variables by which torch finds the compiler, and for a GPU a CUDA toolkit."""
    compiler = write_compiler(directory, request.gpu, environ)
    # by name, not by path, which is another one for each store
    tools = {"CXX": compiler.name, "PATH": os.pathsep.join([str(compiler.parent), *filter(None, [environ.get("PATH")])])}
    if request.simulate:
        tools["CUDA_VISIBLE_DEVICES"] = ""  # another GPU that is here must not answer in place of the simulated one
    if request.gpu == CPU:
        tools["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # there is nothing for Inductor's own workers to do, and a fork starts them anew
    else:
        tools |= toolkit_environment(directory, environ, path=interpreter.path, nvcc=bool(request.also))
    if request.also:
        versions = [arch.removeprefix("sm_") for arch in request.also]
        tools["TORCH_CUDA_ARCH_LIST"] = " ".join(f"{version[:-1]}.{version[-1]}" for version in versions)
    return tools


def _fill_cache(
    message: Mapping[str, Any], directory: Path, *, log: Path, environ: Mapping[str, str], python: str, progress: Progress
) -> None:
    with Process("cache", message, log=log, environ=fresh(environ, directory), python=python) as child:
        wait_for(child.events(), "done", progress)
    strip(directory)


def wait_for(events: Any, name: str, progress: Progress) -> Event:
    """The next event of that name; stages on the way are shown. The end of the events is an error of its own."""
    for event in events:
        if event["event"] == name:
            found: Event = event
            return found
        if event["event"] == "stage":
            progress(Stage.of_event(event))
    raise BuildFailed(f"the build process ended without {name!r}.")


def _pack(
    work: Path, kinds: list[str], *, key: Key, name: str, done: Event, producer: dict[str, str]
) -> tuple[Manifest, dict[Digest, Path]]:
    layers: list[Layer] = []
    files: list[FileEntry] = []
    blobs: dict[Digest, Path] = {}
    for kind in kinds:
        blob = work / f"{kind}.layer"
        with open(blob, "wb") as target:
            layer, entries = pack(kind, kind=kind, root=work / kind, paths=_shipped(work / kind), target=target)
        layers.append(layer)
        files += entries
        blobs[layer.digest] = blob
    manifest = Manifest(
        name=name,
        key=dict(key.parts),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        producer=producer,
        layers=tuple(layers),
        files=tuple(files),
        measured=done["measured"],
        certificate=done["certificate"],
    )
    return manifest, blobs


def signing_keys(root: Path, environ: Mapping[str, str]) -> list[SigningKey]:
    """This machine's, and the one in the file that AOT_SIGNING_KEY names. Raises Malformed, RootRefused, Unreachable."""
    own = SigningKey.of_machine(root)
    return [own, SigningKey(path)] if (path := signing_key(environ)) else [own]


def _signed(manifest: bytes, keys: list[SigningKey]) -> bytes | None:
    return reduce(merge, (key.sign(manifest) for key in keys), None)


def _shipped(root: Path) -> list[str]:
    found = [path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path.as_posix() for path in found if path.parts[0] not in _NOT_SHIPPED and path.suffix not in (".lock", ".tmp")]


def _producer() -> dict[str, str]:
    return {"aot": VERSION, "zstandard": version("zstandard")}


def _log(store: LocalStore, request: Request | Recorded) -> Path:
    folder = store.root / "logs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{request.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"


def fresh(environ: Mapping[str, str], directory: Path) -> dict[str, str]:
    """The environment of a compiling process: an empty Inductor directory, and nothing that changes from run to run."""
    directory.mkdir()
    return {
        **environ,
        INDUCTOR_DIRECTORY: str(directory),
        "TRITON_CACHE_DIR": str(directory / "triton"),
        "TRITON_DISABLE_LINE_INFO": "1",  # or every kernel holds the path of its source, another one each time
        "PYTHONHASHSEED": "0",
    }
