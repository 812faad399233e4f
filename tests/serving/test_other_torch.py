"""An artifact of another torch: refused, allowed only after a canary came back with its golden outputs."""

import base64
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.artifact.certificate import compare
from aot.artifact.golden import FILE, Golden, inputs
from aot.artifact.key import Key
from aot.artifact.kinds import GRAPH
from aot.artifact.ledger import Ledger
from aot.artifact.opened import open_graphs
from aot.building.build import Built
from aot.cache_store.digest import Digest
from aot.cache_store.layer import materialise, pack
from aot.cache_store.local import LocalStore
from aot.cache_store.manifest import Manifest
from aot.cache_store.signing import SigningKey
from aot.cache_store.store import Ref
from aot.errors import BadInput, LoadFailed
from aot.machine.target import Target
from aot.serving.canary import send
from tests.artifacts import admitted, guard_of
from tests.conftest import Artifact
from tests.pixart import denoise, denoiser_call

OLDER = "2.11.7"  # a version that nobody runs


def repacked(built: Artifact, folder: Path, change: Callable[[Path], None], **key: str) -> tuple[LocalStore, Manifest, Digest]:
    """The session's artifact, its graph layer's files changed and packed again, under a changed key, in a store of its own."""
    store, made = built
    manifest, files = made.manifest, folder / GRAPH
    layer = manifest.layer(GRAPH)
    assert layer is not None
    with store.open_blob(layer.digest) as blob:
        materialise(layer, files=manifest.files_of(layer), blob=blob, into=files)
    change(files)
    paths = [path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()]
    with (folder / "layer").open("wb") as target:
        packed, entries = pack(GRAPH, kind=GRAPH, root=files, paths=paths, target=target)
    changed = replace(manifest, key={**manifest.key, **key}, layers=(packed,), files=tuple(entries))
    other, ref = LocalStore(folder / "home"), Ref(changed.name, Key(changed.key).digest)
    raw, key = changed.encode(), SigningKey.of_machine(other.root)
    return other, changed, other.commit(ref, raw, {packed.digest: folder / "layer"}, envelope=key.sign(raw))


def unchanged(_: Path) -> None: ...


def with_golden(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def changed(files: Path) -> None:
        from aot.cache_store.canonical import encode

        value = json.loads((files / FILE).read_bytes())
        change(value)
        (files / FILE).write_bytes(encode(value))

    return changed


def wrong(golden: dict[str, Any]) -> None:
    """Each output as it would be, had another compiler got it a thousandth wrong."""
    for outputs in golden.values():
        for output in outputs:
            values = torch.frombuffer(bytearray(base64.b64decode(output[1])), dtype=torch.float32) * 1.001
            output[1] = base64.b64encode(values.numpy().tobytes()).decode()


def test_golden_outputs_are_the_same_each_time_and_finite(built: tuple[LocalStore, Built]) -> None:
    store, made = built
    book, graphs = open_graphs(store, admitted(store, made.digest), Ledger(), choose=lambda *_: ("transformer", "vae.decoder"))
    runs = {graph.entry.file: graph.run_flat for graph in graphs}
    first, second = Golden.record(book, runs), Golden.record(book, runs)
    assert first.encode() == second.encode()
    assert all(outputs for outputs in first.outputs.values())
    assert first.error(book, runs) == 0
    assert [tensor.shape for tensor in inputs(book, 0)][-len(book.graphs[0].signature.specs) :] == [
        torch.Size(spec.shape) for spec in book.graphs[0].signature.specs
    ]


def test_an_artifact_of_another_torch_is_a_miss_that_names_what_allows_it(
    built: tuple[LocalStore, Built], tmp_path: Path, make_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _, _ = repacked(built, tmp_path, unchanged, **{"target.torch": OLDER})
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(store.root))
    with pytest.raises(aot.errors.Miss, match=rf"target\.torch: built for {OLDER}.*allow=\['other-torch'\]"):  # type: ignore[attr-defined]
        aot.compile_pipe(make_pipe(3), on_miss="error")
    with pytest.raises(BadInput, match="allow 'other-trch' is unknown"):
        aot.compile_pipe(make_pipe(3), allow=("other-trch",))


def test_allowed_it_is_served_once_a_canary_came_back_and_the_second_load_sends_none(
    built: tuple[LocalStore, Built],
    tmp_path: Path,
    make_pipe: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, _, _ = repacked(built, tmp_path, unchanged, **{"target.torch": OLDER})
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(store.root))
    pipe = make_pipe(3)
    with caplog.at_level(logging.WARNING, logger="aot"):
        aot.compile_pipe(pipe, on_miss="error", allow=("other-torch",))
    assert any(f"torch: built for {OLDER}" in record.getMessage() for record in caplog.records)
    assert compare(denoise(pipe, **denoiser_call()), denoise(make_pipe(3), **denoiser_call())).relative_l2 <= 1e-5
    first = aot.stats()[-1]["seconds"]["canary"]
    aot.restore(pipe)
    aot.compile_pipe(pipe, on_miss="error", allow=("other-torch",))
    assert aot.stats()[-1]["seconds"]["canary"] < first / 10, "a canary that passed is remembered"
    aot.restore(pipe)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_golden(wrong), "differ from their golden outputs"),
        (with_golden(lambda golden: golden.update(dict.fromkeys(golden))), "differ from their golden outputs by inf"),
        (lambda files: (files / FILE).unlink(), "no golden outputs"),
        (lambda files: (files / FILE).write_bytes(b"{"), "cannot be read"),
        (lambda files: next(files.glob("*.so")).write_bytes(b"\x7fELF"), "did not come back"),
    ],
)
def test_a_canary_that_does_not_come_back_with_the_golden_outputs_costs_a_compile(
    built: tuple[LocalStore, Built], tmp_path: Path, change: Callable[[Path], None], why: str
) -> None:
    store, _, digest = repacked(built, tmp_path, change, **{"target.torch": OLDER})
    with pytest.raises(LoadFailed, match=why):
        send(store, admitted(store, digest), here=Target.named("cpu"), guard=guard_of(store.root))
    assert not (store.root / "canary").exists()


def test_a_canary_that_crashes_takes_nothing_with_it(built: tuple[LocalStore, Built], tmp_path: Path) -> None:
    """A graph that ends its process: another torch's may."""
    store, _, digest = repacked(built, tmp_path, unchanged, **{"target.torch": OLDER})
    program = tmp_path / "sitecustomize.py"
    program.write_text("import os, sys\nif 'canary' in sys.orig_argv: os.abort()\n")
    import os

    with pytest.raises(LoadFailed, match="killed by signal 6"):
        send(
            store,
            admitted(store, digest),
            here=Target.named("cpu"),
            guard=guard_of(store.root),
            environ={**os.environ, "PYTHONPATH": str(tmp_path)},
        )
