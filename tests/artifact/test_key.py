from dataclasses import replace
from pathlib import Path

import pytest

from aot.artifact.facts import of_wish
from aot.artifact.key import Key, component_parts
from aot.cache_store.store import Entry, Ref
from aot.machine.target import Target
from aot.request.options import Options
from aot.serving.resolve import Accepted, Candidate, Rejected, judge, nearest

GOLDEN = Path(__file__).parents[1] / "golden" / "key.txt"
TARGET = Target("cpu", "x86-64-v4", "2.15.0", "0.42.1", "linux-x86_64")
FACTS = {"class": "diffusers.PixArt", "config": "c", "dtype": "float32", "source": "s", "fingerprint": "f"}


def _key(wish: dict[str, str], facts: dict[str, str] = FACTS) -> Key:
    return Key({**wish, **{f"component/transformer/{name}": value for name, value in facts.items()}, "shapes": "64x64", "recipe": "r"})


WISH = of_wish(Options.parse("{}"), TARGET)


def test_text_form_inverts_and_is_the_golden_file() -> None:
    key = _key(WISH)
    assert Key.parse(str(key)) == key
    assert f"{key}\n{key.digest}\n" == GOLDEN.read_text()


@pytest.mark.parametrize(
    "other",
    [
        of_wish(Options.parse({"mode": "max-autotune"}), TARGET),
        of_wish(Options.parse({"memory_format": "channels_last"}), TARGET),
        of_wish(Options.parse({"options": {"inductor.epilogue_fusion": False}}), TARGET),
        *(of_wish(Options.parse("{}"), replace(TARGET, **{part: "other"})) for part in ("device", "sku", "torch", "system")),
    ],
)
def test_every_part_of_the_wish_moves_the_key_and_is_a_miss_that_names_it(other: dict[str, str]) -> None:
    assert _key(other).digest != _key(WISH).digest
    verdict = judge(_key(WISH), modules={"transformer": FACTS}, wish=other)
    assert isinstance(verdict, Rejected)
    ((name, built, here),) = verdict.differences
    assert (built, here) == (WISH[name], other[name])
    assert name in str(verdict)


def test_another_release_or_other_files_move_the_key_and_are_left_to_the_code_that_was_traced() -> None:
    released = of_wish(Options.parse("{}"), replace(TARGET, diffusers="other"))
    assert _key(released).digest != _key(WISH).digest != _key(WISH, {**FACTS, "source": "other"}).digest
    assert isinstance(judge(_key(WISH), modules={"transformer": {**FACTS, "source": "other"}}, wish=released), Accepted)


@pytest.mark.parametrize("part", [part for part in FACTS if part != "source"])
def test_every_part_of_a_component_moves_the_key_and_is_a_miss_that_names_it(part: str) -> None:
    other = {**FACTS, part: "other"}
    assert _key(WISH, other).digest != _key(WISH).digest
    verdict = judge(_key(WISH), modules={"transformer": other}, wish=WISH)
    assert isinstance(verdict, Rejected)
    assert part in str(verdict)


@pytest.mark.parametrize("part", ["shapes", "batch", "guidance", "frames", "dynamic", "recipe"])
def test_what_only_a_build_knows_moves_the_key_and_not_the_verdict(part: str) -> None:
    other = Key({**_key(WISH).parts, part: "other"})
    assert other.digest != _key(WISH).digest
    assert judge(other, modules={"transformer": FACTS}, wish=WISH) == Accepted({"transformer": "transformer"})


def test_a_module_is_served_under_another_path() -> None:
    assert judge(_key(WISH), modules={"module": FACTS}, wish=WISH) == Accepted({"module": "transformer"})


def test_an_artifact_that_serves_one_of_two_components_is_accepted_for_that_one() -> None:
    other = {**FACTS, "class": "diffusers.Decoder"}
    verdict = judge(_key(WISH), modules={"transformer": FACTS, "vae.decoder": other}, wish=WISH)
    assert isinstance(verdict, Accepted)
    assert verdict.components == {"transformer": "transformer"}
    assert list(verdict.others) == ["vae.decoder"]


def test_the_nearest_artifact_has_a_component_of_the_class_and_is_told_apart_by_that_components_parts_alone() -> None:
    """An artifact without any such component differs in fewer parts, and says nothing."""
    live = {"unet": {**FACTS, "class": "diffusers.UNet"}, "vae.decoder": {**FACTS, "class": "diffusers.Decoder"}}
    without = Key({**WISH, **component_parts("transformer", FACTS)})
    near = Key({**WISH, **component_parts("unet", {**live["unet"], "fingerprint": "lora", "config": "d"})})
    candidates = [
        Candidate(Entry(Ref("x", key.digest), key.digest, created="", size=0, key=dict(key.parts)), judge(key, modules=live, wish=WISH))
        for key in (without, near)
    ]
    ((found, rejected),) = nearest(candidates, "unet")
    assert found is candidates[1]
    assert [name for name, _, _ in rejected.differences] == ["unet config", "unet fingerprint"]


def test_the_nearest_artifact_is_of_the_users_own_model_before_it_is_for_the_same_machine() -> None:
    """An sdxl pipeline on a CPU: an sdxl artifact for a GPU says more than one of sdxl-ip-adapter for this CPU."""
    live = {"unet": {**FACTS, "class": "diffusers.UNet"}}
    elsewhere = of_wish(Options.parse({"mode": "O3"}), replace(TARGET, sku="other", torch="2.14.0", triton="3.7.0"))
    own = Key({**elsewhere, **component_parts("unet", live["unet"])})
    loaded = Key({**WISH, **component_parts("unet", {**live["unet"], "fingerprint": "lora"})})
    adapter = Key({**WISH, **component_parts("unet", {**live["unet"], "fingerprint": "adapter", "config": "d"})})
    candidates = [
        Candidate(Entry(Ref("x", key.digest), key.digest, created="", size=0, key=dict(key.parts)), judge(key, modules=live, wish=WISH))
        for key in (adapter, loaded, own)
    ]
    order = []
    while found := nearest([candidate for candidate in candidates if candidate not in order], "unet"):
        order += [candidate for candidate, _ in found]
    assert order == candidates[::-1]


def test_two_keys_differ_part_by_part() -> None:
    other = _key(of_wish(Options.parse({"mode": "O3"}), TARGET))
    assert [name for name, _, _ in _key(WISH).diff(other)] == ["mode", "process.cuda.matmul.allow_tf32"]


def test_a_process_setting_that_an_option_asks_for_is_a_part_of_the_key() -> None:
    other = of_wish(Options.parse({"options": {"overrides.conv_benchmark": True}}), TARGET)
    verdict = judge(_key(WISH), modules={"transformer": FACTS}, wish=other)
    assert isinstance(verdict, Rejected)
    assert "process.cudnn.benchmark: built for false, here true" in str(verdict)


def test_what_a_user_calls_dynamic_says_how_to_compile_and_not_what_to_load() -> None:
    assert of_wish(Options.parse({"dynamic": True}), TARGET) == WISH
