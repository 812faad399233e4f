"""A pipeline that no recipe knows is built by one call of it, and served."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.artifact.certificate import compare
from aot.errors import BadInput
from tests.pipelines import make

O0 = {"options": {"inductor.aot_inductor.compile_wrapper_opt_level": "O0"}}


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("qwen-image", {"transformer", "vae.decoder"}),  # complex numbers, which torch's own operators compute
        ("wan", {"transformer", "vae.decoder"}),  # a decoder that is called once a frame, and writes to a list
        ("z-image", {"transformer", "vae.decoder"}),  # keeps tables of its first call; lists of tensors
        ("lumina2", {"transformer", "vae.decoder"}),  # reads a tensor's numbers: its blocks alone are compiled
        ("sdxl-img2img", {"unet", "vae.decoder", "vae.encoder"}),  # both halves of an autoencoder
        ("flux-modular", {"transformer", "vae.decoder"}),
    ],
)
def test_a_pipeline_is_built_from_one_call_and_served_without_a_miss(
    name: str, components: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regionally, with nothing optimised; `scripts/pipelines.py` runs all there are."""
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    pipe, call = make(name)

    def picture(pipe: Any) -> Any:
        return pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "pt"})[0]

    built = aot.build(pipe, picture, gpu="cpu", options=O0)
    assert built.ref.name == {"sdxl-img2img": "stable-diffusion-xl-img2img"}.get(name, name)
    with torch.no_grad():
        expected = picture(pipe)
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    aot.compile_pipe(pipe, options=O0, on_miss="error")
    with torch.no_grad():
        assert compare(picture(pipe), expected).relative_l2 <= 1e-5
    (ledger,) = aot.stats()
    assert all(ledger["hits"].values())
    assert {call.split()[0] for call in ledger["hits"]} == components
    assert not ledger["misses"]
    aot.restore(pipe)
    again = aot.build(make(name)[0], picture, gpu="cpu", options=O0)
    assert (again.digest, again.fresh) == (built.digest, False)


def test_what_cannot_be_built_is_told_before_anything_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    pipe, call = make("flux")
    with pytest.raises(BadInput, match=r"no call of the FluxPipeline was given"):
        aot.build(pipe)
    with pytest.raises(BadInput, match="nothing was recorded"):
        aot.build(pipe, lambda _: None, gpu="cpu")
    with pytest.raises(BadInput, match="scope"):
        aot.build(pipe, lambda pipe: pipe(**call), gpu="cpu", scope="all")
    monkeypatch.setattr(type(pipe.transformer.norm_out), "__module__", "__main__")
    with pytest.raises(BadInput, match="transformer has a AdaLayerNormContinuous, which is defined in the program that runs"):
        aot.build(pipe, lambda pipe: pipe(**call), gpu="cpu")
    with aot.record(pipe) as record:
        pass
    with pytest.raises(BadInput, match="holds its calls"):
        aot.build(record, lambda _: None)
    assert not list((tmp_path / "home").glob("v1/refs/*"))
    assert "NEXFORT_GRAPH_CACHE" not in os.environ
