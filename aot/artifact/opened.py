"""Artifact: its layers, verified, as files and libraries of this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from aot.artifact.book import FILE, Book
from aot.artifact.cudagraph import CudaRecorder
from aot.artifact.golden import FILE as GOLDEN
from aot.artifact.golden import Golden
from aot.artifact.guard import Guard, open_timed
from aot.artifact.kernels import kernels_of
from aot.artifact.kinds import GRAPH
from aot.artifact.ledger import Ledger
from aot.artifact.operators import beside
from aot.artifact.runner import Graph, is_open
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed, named
from aot.cache_store.layer import materialise, verify, verifying
from aot.cache_store.manifest import Layer, Manifest
from aot.cache_store.patience import LOAD_SECONDS, Deadline
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted
from aot.request.mode import Mode


def open_graphs(
    store: Store,
    admitted: Admitted,
    ledger: Ledger,
    *,
    choose: Callable[[Book, Callable[[], Golden | None]], Container[str]],
    guard: Guard | None = None,
) -> tuple[Book, list[Graph]]:
    """Verify the graph layer and open the libraries of those of its components that `choose` takes, once it has seen the book
    and, where it asks for them, the golden outputs. What each step took goes into `ledger`.

    Every byte is verified before anything maps it, and those of a file before it is parsed. The files are gone again when this
    returns: the process keeps the mapping, and a process that is killed leaves nothing behind. With a `guard` a mark is left
    while libraries are opened, and during the first call of each. One that this process has opened before is shared, not opened
    again.
    Raises Corrupt, Missing, LoadFailed, TimedOut.
    """
    digest, manifest = admitted.digest, admitted.manifest
    layer = _graph_layer(digest, manifest)
    device, cudagraphs = manifest.key["target.device"], Mode.parse(manifest.key["mode"]).cudagraphs
    entering = partial(guard.entering, digest) if guard else nullcontext
    if kernels := kernels_of(manifest.producer):  # before code is compared: what a model calls must be there to be seen
        with ledger.timed("load"), entering():
            for kernel in kernels:
                kernel.load()
    with run_directory() as directory, _opened(store, admitted, layer, ledger) as (blob, verified):
        with ledger.timed("materialise"):
            book = _book(layer, manifest, blob=blob, into=directory, digest=digest)
        with ledger.timed("compare"):
            components = choose(book, partial(_golden, layer, manifest, blob=blob, into=directory))
        entries = [entry for entry in book.graphs if entry.component in components]
        with ledger.timed("materialise"):
            digests = _digests(layer, manifest)
            opened = {entry.file for entry in entries if is_open(digests[entry.file], device, cudagraphs=cudagraphs)}
            files = {name for entry in entries if entry.file not in opened for name in (entry.file, beside(Path(entry.file)).name)}
            needed = [file for file in manifest.files_of(layer) if file.path in files]
            materialise(layer, files=needed, blob=blob, into=directory)
        verified()
        with ledger.timed("load"), entering():
            graphs = [
                Graph(entry, directory / entry.file, digest=digests[entry.file], device=device, cudagraphs=cudagraphs) for entry in entries
            ]
    for graph in graphs:
        graph.enter_first(entering)
        if cudagraphs:
            graph.replay(CudaRecorder(), partial(ledger.spent, "record"))
    ledger.graphs += graphs
    ledger.artifacts += [str(digest)] if graphs else []
    return book, graphs


def _digests(layer: Layer, manifest: Manifest) -> dict[str, str]:
    """What every file of the layer holds; of a library, also what lies beside it."""
    found = {file.path: str(file.digest) for file in manifest.files_of(layer)}
    return {path: f"{digest} {found.get(str(beside(Path(path))), '')}".rstrip() for path, digest in found.items()}


def read_book(store: Store, admitted: Admitted) -> Book:
    """The shape book alone, to explain a miss; no library is opened. Raises Corrupt, Missing, TimedOut."""
    digest, manifest = admitted.digest, admitted.manifest
    layer = _graph_layer(digest, manifest)
    with run_directory() as directory, open_timed(store, layer.digest, loading(digest)) as blob:
        verify(layer, blob)
        return _book(layer, manifest, blob=blob, into=directory, digest=digest)


def _book(layer: Layer, manifest: Manifest, *, blob: BinaryIO, into: Path, digest: Digest) -> Book:
    """The shape book of a verified layer."""
    materialise(layer, files=[entry for entry in manifest.files_of(layer) if entry.path == FILE], blob=blob, into=into)
    try:
        return Book.parse((into / FILE).read_bytes())
    except (Malformed, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"artifact {digest.short}: its shape book cannot be read: {error}", culprit=str(digest)) from error


def _golden(layer: Layer, manifest: Manifest, *, blob: BinaryIO, into: Path) -> Golden | None:
    """The golden outputs of a verified layer; None where it has none that can be read."""
    materialise(layer, files=[entry for entry in manifest.files_of(layer) if entry.path == GOLDEN], blob=blob, into=into)
    with suppress(Malformed, FileNotFoundError, KeyError, TypeError, ValueError):
        return Golden.read(into / GOLDEN)
    return None


def _graph_layer(digest: Digest, manifest: Manifest) -> Layer:
    layer = manifest.layer(GRAPH)
    if layer is None:
        raise Corrupt(f"artifact {digest.short} has no graph layer.", culprit=str(digest))
    return layer


def unpack(store: Store, admitted: Admitted, *, layer: Layer, into: Path, ledger: Ledger) -> None:
    """Verify one layer and write its files below `into`. Raises Corrupt, Missing, TimedOut."""
    manifest = admitted.manifest
    with _opened(store, admitted, layer, ledger) as (blob, verified):
        with ledger.timed("materialise"):
            materialise(layer, files=manifest.files_of(layer), blob=blob, into=into)
        verified()


@contextmanager
def _opened(store: Store, admitted: Admitted, layer: Layer, ledger: Ledger) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """A layer's blob while it is verified, and what waits for the verdict. What the verdict is waited for goes into `ledger`."""
    with open_timed(store, layer.digest, loading(admitted.digest)) as blob, ExitStack() as stack:
        with ledger.timed("verify"):
            verified = stack.enter_context(verifying(layer, blob))

        def wait() -> None:
            with ledger.timed("verify"):
                verified()

        yield blob, wait


def loading(digest: Digest) -> Deadline:
    """The time that loading an artifact may take once its bytes are on this machine."""
    return Deadline(LOAD_SECONDS, f"loading artifact {digest.short}")


@contextmanager
def run_directory(prefix: str = "aot-run-") -> Iterator[Path]:
    """A directory of this process's own, 0700, on the local disk that TMPDIR names."""
    temporary = Path(tempfile.gettempdir())
    with named(temporary):
        directory = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
