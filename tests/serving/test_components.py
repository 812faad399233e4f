"""What `compile_pipe` looks at of a pipeline."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from aot.serving.nexfort import components, parts, restore
from tests.pipelines import make


def test_the_denoisers_and_the_decoder_are_compiled_and_the_rest_is_served_where_an_artifact_has_it() -> None:
    wan, _ = make("wan-i2v")
    assert list(components(wan, ())) == ["transformer", "vae.decoder"]
    assert set(parts(wan)) >= {"image_encoder", "transformer", "vae.encoder", "vae.decoder"}
    assert "vae" not in set(parts(wan))
    assert list(components(make("wan22")[0], ("vae.decoder",))) == ["transformer", "transformer_2"]
    assert list(components(make("sd15-controlnet")[0], ())) == ["unet", "controlnet", "vae.decoder"]


def test_an_autoencoder_of_another_make_is_no_error() -> None:
    pipe = SimpleNamespace(vae=nn.Linear(1, 1), transformer="a name", unet=None)
    assert components(pipe, ()) == {}


def test_a_module_with_components_of_its_own_is_restored_like_any() -> None:
    module = nn.Linear(1, 1)
    module.components = ["not a pipeline's"]  # type: ignore[assignment]
    assert restore(module) is module
