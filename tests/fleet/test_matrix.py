"""The file of a matrix: its cells, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aot.errors import BadInput
from aot.fleet.matrix import DEFAULT_MEMORY, Cell, Matrix

PIXART = {"what": "pixart-alpha", "variant": "tiny"}


def _of(*models: dict[str, Any], **top: Any) -> Matrix:
    return Matrix.of({"gpus": ["cpu"], "model": list(models), **top}, "m.toml")


def test_a_cell_is_one_build_of_every_axis(tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    file.write_text("""
        store = "hf://me/compiled"
        gpus = ["NVIDIA H200", "rtx-4090"]
        torch = ["2.14.1", "2.15.0"]
        cpus = 2

        [[model]]
        what = "pixart-alpha"
        variant = "small"
        shapes = ["256x256", ["256x256", "512x512"]]
        modes = ["max-optimize"]
        dynamic = true
        lora-rank = 8

        [[model]]
        what = "record.json"
        gpus = ["h200"]
        torch = []
        memory = 12
    """)
    found = Matrix.read(file)
    assert found.store == "hf://me/compiled"
    assert len(found.cells) == 2 * 2 * 2 + 1
    first, *_, last = found.cells
    assert first == Cell(
        "pixart-alpha", "h200", "2.14.1", "max-optimize", ("256x256",), ("--variant", "small", "--lora-rank", "8", "--dynamic")
    )
    assert (first.cpus, first.memory, last.memory) == (2, DEFAULT_MEMORY, 12 << 30)
    assert found.cells[1].arguments() == [
        *("pixart-alpha", "--gpu", "h200", "--torch", "2.14.1", "--mode", "max-optimize"),
        *("--shape", "256x256", "--shape", "512x512", "--variant", "small", "--lora-rank", "8", "--dynamic"),
    ]
    assert last.arguments() == ["record.json", "--gpu", "h200"]
    assert [cell.on_gpu for cell in (first, last)] == [True, False]


@pytest.mark.parametrize(
    ("gpu", "mode", "options", "needed"),
    [
        ("h200", "", (), False),
        ("h200", "low-precision", (), False),
        ("h200", "max-autotune", (), True),
        ("h200", "O3", ("--untuned",), False),
        ("h200", "freezing", (), True),
        ("h200", "", ("--option", "inductor.max_autotune=true"), True),
        ("h200", "", ("--option", "inductor.epilogue_fusion=false"), False),
        ("cpu", "max-autotune", (), False),
    ],
)
def test_a_gpu_is_needed_by_what_times_kernels_or_folds_weights(gpu: str, mode: str, options: tuple[str, ...], needed: bool) -> None:
    assert Cell("pixart-alpha", gpu, mode=mode, options=options).on_gpu is needed


def test_sizes_of_what_is_no_recipe_are_calls() -> None:
    (cell,) = _of({"what": "acme/flux", "calls": [["height=512", "height=1024,width=768"]]}).cells
    assert cell.arguments() == ["acme/flux", "--gpu", "cpu", "--call", "height=512", "--call", "height=1024,width=768"]


def test_cells_that_every_field_of_an_exclude_names_are_left_out_and_equal_ones_are_one() -> None:
    models = {**PIXART, "gpus": ["h200", "rtx-4090"], "shapes": ["64x64", "64x96", "64x64"]}
    assert len(_of(models).cells) == 4
    left = _of(models, exclude=[{"gpu": "rtx-*", "shape": "64x96"}]).cells
    assert [(cell.gpu, *cell.sizes) for cell in left] == [("h200", "64x64"), ("h200", "64x96"), ("rtx-4090", "64x64")]


def test_shards_part_the_cells() -> None:
    whole = _of({**PIXART, "shapes": [f"{16 * side}x64" for side in range(1, 8)]})
    shards = [whole.shard(f"{place}/3").cells for place in (1, 2, 3)]
    assert [len(cells) for cells in shards] == [3, 2, 2]
    assert {cell for cells in shards for cell in cells} == {*whole.cells}


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "no [[model]]"),
        ({"model": [{}]}, "without what"),
        ({"model": [{"what": 3}]}, "without what"),
        ({"model": {"what": "pixart-alpha"}}, "write [[model]]"),
        ({"model": [PIXART]}, "no gpus"),
        ({"gpus": "cpu", "model": [PIXART]}, "gpus is 'cpu', and it is a list"),
        ({"gpus": ["h2000"], "model": [PIXART]}, "Did you mean 'h200'"),
        ({"gpus": ["cpu"], "model": [{**PIXART, "shpaes": []}]}, "Did you mean 'shapes'"),
        ({"gpus": ["cpu"], "gpu": 1, "model": [PIXART]}, "Did you mean 'gpus'"),
        ({"gpus": ["cpu"], "model": [{**PIXART, "calls": ["height=1"]}]}, "write shapes"),
        ({"gpus": ["cpu"], "model": [{"what": "acme/flux", "shapes": ["64x64"]}]}, "write calls"),
        ({"gpus": ["cpu"], "model": [{**PIXART, "shapes": [[]]}]}, "shapes is [[]]"),
        ({"gpus": ["cpu"], "model": [{**PIXART, "variant": 3}]}, "variant is 3, and it is a text"),
        ({"gpus": ["cpu"], "model": [{**PIXART, "dynamic": "yes"}]}, "dynamic"),
        ({"gpus": ["cpu"], "model": [{**PIXART, "lora-rank": True}]}, "lora-rank is True, and it is a number"),
        ({"gpus": ["cpu"], "cpus": -1, "model": [PIXART]}, "cpus is -1"),
        ({"gpus": ["cpu"], "model": [PIXART], "store": 1}, "store is 1"),
        ({"gpus": ["cpu"], "model": [PIXART], "exclude": [{"gpus": "cpu"}]}, "Did you mean 'gpu'"),
        ({"gpus": ["cpu"], "model": [PIXART], "exclude": [{"gpu": ["cpu"]}]}, "it is a text"),
        ({"gpus": ["cpu"], "model": [PIXART], "exclude": [{"gpu": "*"}]}, "leaves no cell"),
    ],
)
def test_a_file_that_says_something_else_is_refused_by_the_field(found: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as raised:
        Matrix.of(found, "m.toml")
    assert words in f"{raised.value.message} {raised.value.remedy}"


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--shard"):
        _of(PIXART).shard(text)


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text("model = [")
    for name in ("m.toml", "nowhere.toml"):
        with pytest.raises(BadInput, match="cannot be read as TOML"):
            Matrix.read(tmp_path / name)


def test_a_torch_is_written_as_in_keys_and_packages_are_of_one_cell() -> None:
    assert {cell.torch for cell in _of(PIXART, torch=["2.14", "2.14.0"]).cells} == {"2.14.0"}
    with pytest.raises(BadInput, match="nightly"):
        _of(PIXART, torch=["nightly"])
    assert _of({**PIXART, "layout": "spaces"}, PIXART).cells[0].options[-2:] == ("--layout", "spaces")
    with pytest.raises(BadInput, match="layout is of 2 cells"):
        _of({**PIXART, "layout": "spaces"}, gpus=["h200", "rtx-4090"])
