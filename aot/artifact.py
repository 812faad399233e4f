"""Artifact: its layers, verified, as files and libraries of this process."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from aot.book import FILE, Book
from aot.cudagraph import CudaRecorder
from aot.ledger import Ledger
from aot.mode import Mode
from aot.runner import Graph
from cache_store.digest import Digest
from cache_store.errors import Corrupt, Malformed, named
from cache_store.layer import materialise, verify
from cache_store.manifest import Layer, Manifest
from cache_store.store import Store

GRAPH, CACHE = "graph", "cache"  # the kinds of layer


def open_graphs(store: Store, digest: Digest, manifest: Manifest, ledger: Ledger) -> tuple[Book, list[Graph]]:
    """Verify and materialise the graph layer and open its libraries. What each step took goes into `ledger`.

    Every byte is verified before anything parses or maps it. The files are gone again when this returns: the process
    keeps the mapping, and a process that is killed leaves nothing behind. Raises Corrupt, Missing, LoadFailed.
    """
    layer = _graph_layer(digest, manifest)
    with _run_directory() as directory:
        unpack(store, manifest, layer=layer, into=directory, ledger=ledger)
        started = time.perf_counter()
        book = _parse_book(directory / FILE, digest)
        device, cudagraphs = manifest.key["target.device"], Mode.parse(manifest.key["mode"]).cudagraphs
        graphs = [Graph(entry, directory / entry.file, device=device, cudagraphs=cudagraphs) for entry in book.graphs]
        ledger.spent("load", time.perf_counter() - started)
    if cudagraphs:
        for graph in graphs:
            graph.replay(CudaRecorder(), partial(ledger.spent, "record"))
    ledger.graphs += graphs
    ledger.artifacts.append(str(digest))
    return book, graphs


def read_book(store: Store, digest: Digest, manifest: Manifest) -> Book:
    """The shape book alone, to explain a miss; no library is opened. Raises Corrupt, Missing."""
    layer = _graph_layer(digest, manifest)
    files = [entry for entry in manifest.files_of(layer) if entry.path == FILE]
    with _run_directory() as directory, store.open_blob(layer.digest) as blob:
        verify(layer, blob)
        materialise(layer, files=files, blob=blob, into=directory)
        return _parse_book(directory / FILE, digest)


def _graph_layer(digest: Digest, manifest: Manifest) -> Layer:
    layer = manifest.layer(GRAPH)
    if layer is None:
        raise Corrupt(f"artifact {digest.short} has no graph layer.", culprit=str(digest))
    return layer


def _parse_book(path: Path, digest: Digest) -> Book:
    try:
        return Book.parse(path.read_bytes())
    except (Malformed, FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"artifact {digest.short}: its shape book cannot be read: {error}", culprit=str(digest)) from error


def unpack(store: Store, manifest: Manifest, *, layer: Layer, into: Path, ledger: Ledger) -> None:
    """Verify one layer and write its files below `into`. Raises Corrupt, Missing."""
    with store.open_blob(layer.digest) as blob:
        started = time.perf_counter()
        verify(layer, blob)
        verified = time.perf_counter()
        materialise(layer, files=manifest.files_of(layer), blob=blob, into=into)
        ledger.spent("verify", verified - started)
        ledger.spent("materialise", time.perf_counter() - verified)


@contextmanager
def _run_directory() -> Iterator[Path]:
    """A directory of this process's own, 0700, on the local disk that TMPDIR names."""
    temporary = Path(tempfile.gettempdir())
    with named(temporary):
        directory = Path(tempfile.mkdtemp(prefix="aot-run-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
