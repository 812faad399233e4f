"""The pipelines of today, as rows: each size of each can be recorded, and says what the published model is."""

from __future__ import annotations

import pytest

from aot.errors import BadInput
from aot.recipes.published import Published
from aot.recipes.rows import FAMILIES

# parameters of the denoisers at published size, in billions, as their makers tell them
BILLIONS = {
    "flux.1-dev": 11.9,
    "flux.2-dev": 32.2,
    "qwen-image": 20.4,
    "z-image-turbo": 6.2,
    "wan2.2-t2v-a14b": 14.3,
    "ltx-video": 1.9,
    "sd3.5-large": 8.1,
}


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_each_row_is_recorded(name: str, variant: str) -> None:
    found = Published(name, variant).record()
    assert found.name == name
    assert not found.left
    assert [path for path in found.modules if path.startswith("transformer")]
    assert "vae.decoder" in found.modules


@pytest.mark.parametrize("name", list(FAMILIES))
def test_at_full_size_it_is_the_published_model(name: str) -> None:
    """No memory is touched: these are objects of up to 29 billion parameters."""
    denoiser = Published(name, "full", dtype="bfloat16").pipeline().transformer
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(BILLIONS[name], abs=0.06)


def test_a_row_or_call_that_is_none_is_told_by_name() -> None:
    with pytest.raises(BadInput, match=r"--variant of flux\.1-dev 'large' is unknown"):
        Published("flux.1-dev", "large").check()
    with pytest.raises(BadInput, match="'hight' is unknown"):
        Published("flux.1-dev", "tiny", ({"hight": 3},)).record()
    found = Published("flux.1-dev", "tiny", ({"height": 64}, {"width": 80})).record()
    assert [call.component for call in found.calls] == ["transformer", "vae.decoder"] * 2
