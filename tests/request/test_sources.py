"""What a build is made from, where it is no live pipeline: a Record's file, the configs of a pipeline, a recipe file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import aot
from aot.cache_store.errors import CodedError
from aot.errors import BadInput, Unsupported
from aot.model.fingerprint import Fingerprint
from aot.model.unweighted import unweighted
from aot.request.origin import Origin
from aot.request.recipe_file import RecipeFile
from aot.request.record import Record
from tests.pipelines import make

# pipelines with parts of both libraries, lists and complex tables, blocks in glue, two denoisers
SAVED = ("flux", "qwen-image", "z-image", "lumina2", "wan22", "wan-i2v", "sd15-controlnet", "sdxl-img2img")


def _recorded(name: str) -> Record:
    pipe, call = make(name)
    with aot.record(pipe) as found, torch.no_grad():
        pipe(**call)
    return found


@pytest.mark.parametrize("name", SAVED)
def test_a_record_comes_back_from_its_file_as_it_was(name: str, tmp_path: Path) -> None:
    record = _recorded(name)
    record.save(tmp_path / "record.json")
    back = Record.load(tmp_path / "record.json")
    assert back.calls == record.calls
    assert (back.name, sorted(back.modules), back.left) == (record.name, sorted(record.modules), record.left)
    for path, module in record.modules.items():
        assert Fingerprint.of(back.modules[path]).essence.differs(Fingerprint.of(module).essence) is None
    text = (tmp_path / "record.json").read_text()
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_what_was_done_to_a_model_since_is_done_again_or_refused_by_name(tmp_path: Path) -> None:
    pipe, call = make("sdxl-img2img")
    pipe.unet.to(memory_format=torch.channels_last)
    with aot.record(pipe) as record, torch.no_grad():
        pipe(**call)
    record.save(tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_bytes())["roots"]["unet"]["state"] == ["channels_last"]
    assert next(Record.load(tmp_path / "record.json").modules["unet"].parameters()).is_contiguous(memory_format=torch.channels_last)
    pipe.unet.conv_norm_out.eps = 0.5
    with pytest.raises(Unsupported, match=r"unet is not what its class and config make: conv_norm_out has eps"):
        record.save(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_a_record_of_another_model_than_can_be_made_here_is_refused(tmp_path: Path) -> None:
    _recorded("flux").save(tmp_path / "record.json")
    value = json.loads((tmp_path / "record.json").read_bytes())

    def load(change: Any) -> Record:
        changed = json.loads(json.dumps(value))
        change(changed)
        (tmp_path / "changed.json").write_text(json.dumps(changed))
        return Record.load(tmp_path / "changed.json")

    def root(changed: Any) -> Any:
        return changed["roots"]["transformer"]

    with pytest.raises(Unsupported, match=r"transformer comes out otherwise here than where it was recorded \(.*torch"):
        load(lambda changed: root(changed)["config"].update(num_layers=3))
    with pytest.raises(Unsupported, match=r"is a os\.path.*classes are taken from diffusers, transformers alone"):
        load(lambda changed: root(changed).update({"class": "os:path"}))
    with pytest.raises(Unsupported, match="is a class of neither"):
        load(lambda changed: root(changed).update({"class": "diffusers.schedulers:DDIMScheduler"}))
    with pytest.raises(Unsupported, match="more than 50000 modules"):
        load(lambda changed: root(changed)["config"].update(num_layers=1 << 20))
    for named in ("somebody/kernels", {"": "somebody/kernels"}, {"text": ["flash_attention_2"]}):
        with pytest.raises(Unsupported, match="asks for the kernels"):
            load(lambda changed, named=named: root(changed)["config"].update(attn_implementation=named))
    with pytest.raises(BadInput, match="the config of transformer is no object"):
        load(lambda changed: root(changed).update(config="somebody/repository"))
    with pytest.raises(Unsupported, match="'load' is no dtype"):
        load(lambda changed: changed["calls"][0].update(dtype="load"))
    with pytest.raises(BadInput, match="is no Record of form 1"):
        load(lambda changed: changed.update(form=99))
    with pytest.raises(BadInput, match="calls of nobody"):
        load(lambda changed: changed["calls"][0].update(component="nobody"))
    (tmp_path / "text.json").write_text("a Record")
    with pytest.raises(BadInput, match="is no Record"):
        Record.load(tmp_path / "text.json")
    with pytest.raises(BadInput, match="there is no file"):
        Record.load(tmp_path / "nowhere.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "record.json"
    _recorded("sana").save(path)
    return path


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 1 << 20), st.floats(allow_nan=False), st.text(max_size=8), st.lists(st.integers(), max_size=3)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_record_from_a_stranger_is_an_error_or_the_very_same(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever one leaf or branch of the file is replaced by: an error of ours, or modules whose fingerprints are the recorded ones."""
    value = json.loads(saved.read_bytes())
    node: Any = value
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))), label="step")
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.integers(0, 5), label="deeper"):
            node = node[key]
            continue
        node[key] = data.draw(_LEAVES, label="leaf")
        break
    (tmp_path / "changed.json").write_text(json.dumps(value))
    try:
        found = Record.load(tmp_path / "changed.json")
    except CodedError as error:
        assert error.message
        return
    for path, lines in value["components"].items():
        assert Fingerprint.from_json(lines).differs(Fingerprint.of(found.modules[path]).essence) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["wan-i2v", "z-image", "sd15-controlnet"])
def test_a_model_without_weights_is_what_its_library_would_load(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pipe, _ = make(name)
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            module.save_pretrained(tmp_path / part)
            loaded = type(module).from_pretrained(tmp_path / part, torch_dtype=dtype)
            for file in (tmp_path / part).glob("*.safetensors*"):
                file.unlink()
            made = unweighted(type(module), tmp_path / part, dtype)
            assert Fingerprint.of(loaded).differs(Fingerprint.of(made)) is None


_VIDEO = {
    "height": 16,
    "width": 32,
    "num_frames": 9,
    "guidance_scale": 5.0,
    "prompt_embeds": "1x8x32",
    "negative_prompt_embeds": "1x8x32",
}
CALLS = {
    "flux": {"height": 32, "width": 48, "prompt_embeds": "1x8x32", "pooled_prompt_embeds": "1x32"},
    "wan-i2v": {
        "image": "16x32",
        "height": 16,
        "width": 32,
        "num_frames": 9,
        "prompt_embeds": "1x8x32",
        "negative_prompt_embeds": "1x8x32",
    },
    "wan22": {"height": 16, "width": 32, "num_frames": 9, "prompt_embeds": "1x8x32", "negative_prompt_embeds": "1x8x32"},
}


@pytest.mark.parametrize("name", list(CALLS))
def test_a_pipelines_folder_without_weights_is_recorded_as_the_live_one(name: str, tmp_path: Path) -> None:
    pipe, call = make(name)
    pipe.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors*"):
        file.unlink()
    with aot.record(pipe) as live, torch.no_grad():
        pipe(**{**call, "guidance_scale": CALLS[name].get("guidance_scale", 3.5)})
    found = Origin(str(tmp_path), (CALLS[name],)).record()
    assert found.calls == live.calls, name
    assert list(found.modules) == list(live.modules)


def test_what_a_folder_or_its_calls_are_not_is_told_by_name(tmp_path: Path) -> None:
    pipe, _ = make("flux")
    with pytest.raises(BadInput, match=r"holds no model_index\.json"):
        Origin(str(tmp_path)).check()
    with pytest.raises(BadInput, match=r"is no folder.*and no repository's name"):
        Origin("./no/such/place").record()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"'hight' is unknown\. Did you mean 'height'"):
        Origin(str(tmp_path), ({"hight": 3},)).record()
    with pytest.raises(BadInput, match="FluxPipeline cannot be called with height=32"):
        Origin(str(tmp_path), ({"height": 32},)).record()
    index = json.loads((tmp_path / "model_index.json").read_bytes())
    for changed, reason in (
        ({**index, "_class_name": "NoSuchPipeline"}, "is a NoSuchPipeline, which diffusers"),
        ({**index, "transformer": ["os", "path"]}, r"transformer is a os\.path, and classes are taken from"),
        ({**index, "transformer": ["diffusers", "NoSuchModel"]}, "which is not in the diffusers that is installed"),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(changed))
        with pytest.raises(Unsupported, match=reason):
            Origin(str(tmp_path)).record()
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(BadInput, match="is no JSON"):
        Origin(str(tmp_path)).record()


def test_a_recipe_file_is_a_pipeline_and_its_calls(tmp_path: Path) -> None:
    path = tmp_path / "my_recipe.py"
    path.write_text(
        "from tests.pipelines import make\n"
        "PIPE, CALL = make('flux')\n"
        "def pipeline(): return PIPE\n"
        "def call_small(pipeline): pipeline(**CALL)\n"
        "def call_large(pipeline): pipeline(**{**CALL, 'height': 64})\n"
    )
    found = RecipeFile(str(path)).record()
    assert found.name == "my-recipe"
    assert [call.component for call in found.calls] == ["transformer", "vae.decoder"] * 2
    path.write_text("def pipeline(): return None\n")
    with pytest.raises(BadInput, match=r"has no function call\(pipeline\)"):
        RecipeFile(str(path)).record()
    path.write_text("")
    with pytest.raises(BadInput, match=r"has no function pipeline\(\)"):
        RecipeFile(str(path)).record()


@settings(deadline=None)  # the first example imports the command line
@example(text="a")
@given(text=st.text(max_size=30))
def test_the_arguments_of_a_call_are_read_or_refused(text: str) -> None:
    from aot.cli.source import parse_call

    try:
        assert all(name.isidentifier() for name in parse_call(text))
    except BadInput as error:
        assert "--call" in error.message


def test_the_arguments_of_a_call_are_python_values() -> None:
    from aot.cli.source import parse_call

    found = parse_call("height=1024, width=832,guidance_scale=3.5,prompt='two dogs, and a cat',return_dict=false,image=16x32")
    assert found == {
        "height": 1024,
        "width": 832,
        "guidance_scale": 3.5,
        "prompt": "two dogs, and a cat",
        "return_dict": False,
        "image": "16x32",
    }
