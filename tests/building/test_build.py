"""Builds, for real, as small as they can be: one component, one size, no cache layer."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.artifact.certificate import compare
from aot.artifact.ledger import Ledger
from aot.artifact.opened import open_graphs
from aot.building.build import Built, build
from aot.building.check import check_graphs
from aot.building.recorded import make_plan
from aot.cache_store.layer import pack
from aot.cache_store.local import LocalStore
from aot.cache_store.written import in_use
from aot.errors import BadEnvironment, BadInput, OutsideTolerance
from aot.request.options import Options
from tests.artifacts import admitted
from tests.cache_store.test_local import check_invariant
from tests.conftest import BUILD_REGIONAL, SHAPES, Regional, request_for
from tests.pixart import RECIPE, denoise, denoiser_call, make_pipe
from tests.shared import quiet

SMALLEST = {"components": ("transformer",), "shapes": SHAPES[:1], "cache_layer": False}


def test_the_artifact_holds_both_layers_a_certificate_and_what_was_measured(built: tuple[LocalStore, Built]) -> None:
    store, made = built
    check_invariant(store)
    manifest = made.manifest
    assert [layer.kind for layer in manifest.layers] == ["graph", "cache"]
    assert len(manifest.certificate["calls"]) == 4
    assert all(0 <= call["relative_l2"] <= 1e-5 for call in manifest.certificate["calls"])
    assert len(manifest.measured["compile_s"]) == 4
    assert not any(entry.path.endswith((".lock", ".pt2")) for entry in manifest.files)
    assert made.log.exists()
    # tests in other processes read this store too
    assert not [path for path in (store.root / "v1" / "tmp").iterdir() if not in_use(path)]


def test_building_what_is_there_takes_the_stores_own(built: tuple[LocalStore, Built]) -> None:
    store, made = built
    again = build(request_for(), store, progress=quiet, environ=os.environ)
    assert (again.fresh, again.digest) == (False, made.digest)


def test_packing_the_same_files_again_gives_the_same_layers(built: tuple[LocalStore, Built], tmp_path: Path) -> None:
    from aot.cache_store.layer import materialise

    store, made = built
    for layer in made.manifest.layers:
        entries = made.manifest.files_of(layer)
        with store.open_blob(layer.digest) as blob:
            materialise(layer, files=entries, blob=blob, into=tmp_path / layer.id)
        with (tmp_path / f"{layer.id}.layer").open("wb") as target:
            again, _ = pack(layer.id, kind=layer.kind, root=tmp_path / layer.id, paths=[entry.path for entry in entries], target=target)
        assert again == layer


def test_a_graph_that_computes_something_else_fails_the_check(built: tuple[LocalStore, Built]) -> None:
    """The second component's graph is wrong; the certificate must not be a comparison of a graph with itself."""
    store, made = built
    book, graphs = open_graphs(store, admitted(store, made.digest), Ledger(), choose=lambda *_: ("transformer", "vae.decoder"))
    plan = make_plan(RECIPE, request_for())
    check_graphs(plan, book, graphs, device="cpu", mode=Options().mode, measured={})
    for broken in graphs:
        run = broken.run_flat
        broken.run_flat = lambda tensors, run=run: [output * 1.001 for output in run(tensors)]
        with pytest.raises(OutsideTolerance, match=broken.entry.component):
            check_graphs(plan, book, graphs, device="cpu", mode=Options().mode, measured={})
        broken.run_flat = run
        assert all("forward" not in vars(module) for module in plan.modules.values())


def test_two_builds_at_once_make_one_artifact_and_its_blocks_load(regional: Regional, monkeypatch: pytest.MonkeyPatch) -> None:
    home, said = regional
    assert [code for _, _, code in said] == [0, 0], said
    results = [json.loads(output) for output, _, _ in said]
    assert sorted(result["fresh"] for result in results) == [False, True]
    assert results[0]["digest"] == results[1]["digest"]
    store = LocalStore(home)
    check_invariant(store)
    assert len(list(store.refs())) == 1
    _check_regional(home, monkeypatch)


def _check_regional(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", str(home))
    pipe = make_pipe(3)
    aot.compile_pipe(pipe, on_miss="error", ignores=("vae.decoder",))
    assert compare(denoise(pipe), denoise(make_pipe(3))).relative_l2 <= 1e-5
    assert sum(aot.stats()[0]["hits"].values()) == len(pipe.transformer.transformer_blocks)
    with pytest.raises(aot.errors.Miss):  # type: ignore[attr-defined]
        denoise(pipe, **denoiser_call(8, 12))
    aot.restore(pipe)


@pytest.mark.compiles
def test_killing_a_build_leaves_no_artifact_no_ref_and_no_process(tmp_path: Path) -> None:
    environ = {**os.environ, "AOT_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(BUILD_REGIONAL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ)
    assert process.stderr is not None
    for line in process.stderr:
        if "capture" in line:  # that is done; it compiles
            break
    (child,) = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    store = LocalStore(tmp_path / "home")
    assert list(store.refs()) == []
    assert list((tmp_path / "home" / "v1" / "blobs").iterdir()) == []
    store.collect()
    assert list((tmp_path / "home" / "v1" / "tmp").iterdir()) == []


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (replace(request_for(**SMALLEST), weights="/nonexistent/weights"), "--weights"),
        (replace(request_for(**SMALLEST), options=Options.parse({"options": {"inductor.epilogue_fusoin": True}})), "'epilogue_fusion'"),
    ],
)
def test_what_only_the_build_process_can_know_to_be_wrong_is_told_as_what_it_is(tmp_path: Path, request_: Any, names: str) -> None:
    store = LocalStore(tmp_path / "home")
    with pytest.raises(BadInput, match=names):
        build(request_, store, progress=quiet, environ=os.environ)
    assert list(store.refs()) == []


def test_a_store_whose_path_holds_a_blank_is_refused_before_anything_is_compiled(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "my artifacts")
    with pytest.raises(BadEnvironment, match="holds a blank"):
        build(request_for(**SMALLEST), store, progress=quiet, environ=os.environ)


def test_weights_of_a_folder_make_the_same_key_parts_as_the_variant(tmp_path: Path) -> None:
    pipe = make_pipe(9)
    pipe.save_pretrained(tmp_path / "weights")
    ours = make_plan(RECIPE, request_for(**SMALLEST, weights=str(tmp_path / "weights")))
    theirs = make_plan(RECIPE, request_for(**SMALLEST))
    assert {name for name, _, _ in ours.key.diff(theirs.key)} == {"variant"}
    assert torch.equal(ours.modules["transformer"].proj_out.weight, pipe.transformer.proj_out.weight)  # type: ignore[union-attr]
