"""Shape, Mode, Options, Target: the nouns that have a text form."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aot.errors import BadInput, Unsupported
from aot.request.mode import COMBINATIONS, WORDS, Mode, parse_options
from aot.request.options import Options
from aot.request.shape import Shape


@given(st.integers(1, 99999), st.integers(1, 99999))
def test_shape_inverts(height: int, width: int) -> None:
    assert Shape.parse(str(Shape(height, width))) == Shape(height, width)


@pytest.mark.parametrize("text", ["", "64", "64x", "0x64", "64x-1", "64X64", "64x64x64", "a x b", " 64x64", "999999x1"])
def test_other_shapes_are_named(text: str) -> None:
    with pytest.raises(BadInput, match="shape"):
        Shape.parse(text)


def test_a_shape_that_does_not_divide_is_told_the_nearest() -> None:
    with pytest.raises(BadInput, match="multiple of 16") as caught:
        Shape(250, 256).check(16)
    assert "256x256" in caught.value.remedy


@given(st.lists(st.sampled_from([*WORDS, *COMBINATIONS])))
def test_mode_inverts(words: list[str]) -> None:
    mode = Mode.parse(":".join(words) or "default")
    assert Mode.parse(str(mode)) == mode


def test_combinations_are_their_words_and_keep_their_name() -> None:
    assert Mode.parse("O3") == Mode.parse("max-optimize:max-autotune:low-precision:cache-all")
    assert Mode.parse("O2").title == "O2"
    assert "low-precision" not in Mode.parse("O2").words


def test_earlier_words_win() -> None:
    quiet, loud = Mode.parse("disable-runtime-fusion"), Mode.parse("disable-runtime-fusion:max-autotune:max-optimize")
    assert all(loud.inductor[name] == value for name, value in quiet.inductor.items())


def test_an_unknown_word_names_the_nearest_and_the_known() -> None:
    with pytest.raises(BadInput, match="'max-autotune'") as caught:
        Mode.parse("max-autotunes")
    assert all(word in caught.value.remedy for word in [*WORDS, *COMBINATIONS])


def test_a_word_that_no_artifact_for_a_device_can_have_is_refused_with_the_reason() -> None:
    mode = Mode.parse("O2:cudagraphs")
    with pytest.raises(Unsupported, match="cudagraphs") as caught:
        mode.check_artifact("cpu")
    assert "no kernels to record" in caught.value.remedy
    mode.check_artifact("cuda")


def test_options_map_to_inductor_and_process_settings() -> None:
    inductor, process = parse_options({"inductor.epilogue_fusion": False, "triton.multi_kernel": 2, "overrides.conv_benchmark": True})
    assert inductor == {"epilogue_fusion": False, "triton.multi_kernel": 2}
    assert process == {"cudnn.benchmark": True}


def test_an_option_that_torch_no_longer_has_is_told_what_replaces_it() -> None:
    with pytest.raises(BadInput, match=r"inductor\.optimize_linear_epilogue") as caught:
        Options.parse({"options": {"inductor.optimize_linear_epilogue": False}})
    assert "epilogue_fusion" in caught.value.remedy


def test_options_are_the_same_from_a_dict_and_from_json() -> None:
    given_ = {"mode": "O3", "memory_format": "channels_last", "dynamic": True, "options": {"inductor.epilogue_fusion": False}}
    assert Options.parse(given_) == Options.parse(json.dumps(given_))
    assert Options.parse(Options.parse(given_).to_json()) == Options.parse(given_)
    assert Options.parse(None) == Options.parse({}) == Options.parse("{}")
    assert Options.parse({"memory_format": "torch.channels_last"}).memory_format == "channels_last"


@pytest.mark.parametrize(
    ("given_", "names"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ({"mod": "O2"}, "'mode'"),
        ({"dynamic": "yes"}, "dynamic"),
        ({"options": {"x": None}}, "options"),
        ({"options": {"nonsense": 1}}, "nonsense"),
        ({"memory_format": "channels_first"}, "memory_format"),
        ({"mode": 3}, "mode"),
        (3, "int"),
    ],
)
def test_bad_options_name_the_field(given_: object, names: str) -> None:
    with pytest.raises(BadInput, match=names):
        Options.parse(given_)  # type: ignore[arg-type]
