"""What a build makes for ZeroGPU Spaces: loaded by `spaces` itself from a repository, and by us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

import aot
from aot.artifact.certificate import compare
from aot.artifact.cubin import architectures
from aot.artifact.kernels import Kernel
from aot.artifact.key import Key
from aot.artifact.kinds import NO_SOURCE
from aot.artifact.kinds import PACKAGE as FILE
from aot.artifact.ledger import Ledger
from aot.artifact.opened import unpack
from aot.building.build import Built
from aot.compiler.inductor import Configuration
from aot.compiler.package import compile_package
from aot.errors import BadInput, Unsupported
from aot.model.signature import Signature
from aot.shipping.spaces import about, at_root
from aot.verbs.stores import local_store, open_guard
from tests.building.test_pipeline import O0
from tests.cache_store.hub_server import Hub
from tests.model.test_wrapped import _gguf
from tests.pipelines import make

REPO = "acme/flux"
BLOCKS = ["FluxSingleTransformerBlock", "FluxTransformerBlock"]

# a Space: the packages at the root of a repository, in the place of the blocks of a pipeline
SPACE = """
import sys
import torch
from spaces.zero.torch.aoti import LazyAOTIModelWithWeights, aoti_blocks_load, aoti_load
from tests.pipelines import make

def picture(pipe, call):
    return pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "pt"})[0]

name, repo, how, *more = sys.argv[1:]
pipe, call = make(name)
with torch.no_grad():
    expected = picture(pipe, call)
    aoti_blocks_load(pipe.transformer, repo, *more) if how == "blocks" else aoti_load(pipe.transformer, repo)
    replaced = sum(isinstance(module.__dict__.get("forward"), LazyAOTIModelWithWeights) for module in pipe.transformer.modules())
    got = picture(pipe, call)
print(replaced, float((got - expected).norm() / expected.norm()))
"""


def picture(pipe: Any, call: dict[str, Any]) -> Any:
    return pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "pt"})[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("spaces")
        patch.setenv("AOT_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def built(home: Path) -> Built:
    assert home
    pipe, call = make("flux")
    return aot.build(pipe, lambda pipe: picture(pipe, call), gpu="cpu", components=("transformer",), layout="spaces", options=O0)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as hub:
        hub.create(REPO)
        yield hub


def _environ(hub: Hub, folder: Path) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder)}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _aot(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "aot.cli.app", *words], capture_output=True, text=True, env=environ)


def _space(environ: dict[str, str], *words: str) -> tuple[int, float]:
    done = subprocess.run([sys.executable, "-c", SPACE, *words], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    replaced, error = done.stdout.split()[-2:]
    return int(replaced), float(error)


@pytest.mark.compiles
def test_a_space_takes_a_repository_as_it_is_and_gives_eagers_picture(built: Built, hub: Hub, tmp_path: Path) -> None:
    environ = _environ(hub, tmp_path / "hf")
    pushed = _aot(environ, "push", str(built.digest), f"hf://{REPO}")
    assert pushed.returncode == 0, pushed.stderr
    found = [path for path in hub.files(REPO) if not path.startswith("v1/")]
    assert {*found} - {".gitattributes"} == {*(f"{name}/{FILE}" for name in BLOCKS), "README.md", "config.json"}
    about = json.loads(hub.read(REPO, "config.json"))["aot"]
    assert sorted(about) == BLOCKS
    assert {told["target.torch"] for told in about.values()} == {built.manifest.key["target.torch"]}
    assert f'spaces.aoti_blocks_load(pipe.transformer, "{REPO}")' in hub.read(REPO, "README.md").decode()
    replaced, error = _space(environ, "flux", REPO, "blocks")
    assert (replaced, error <= 1e-5) == (4, True)
    calls = [call for call in built.manifest.certificate["calls"] if call["call"].startswith("for Spaces")]
    assert len(calls) == len(BLOCKS)
    assert all(call["relative_l2"] <= 1e-5 for call in calls)


@pytest.mark.compiles
@pytest.mark.usefixtures("built")
def test_our_own_loader_serves_the_same_artifact(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call = make("flux")
    with torch.no_grad():
        expected = picture(pipe, call)
        monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
        aot.compile_pipe(pipe, options=O0, ignores=("vae.decoder",), on_miss="error")
        assert compare(picture(pipe, call), expected).relative_l2 <= 1e-5
    aot.restore(pipe)


@pytest.mark.compiles
def test_packages_of_another_machine_or_hand_are_not_replaced_unasked(built: Built, hub: Hub, tmp_path: Path) -> None:
    environ, digest = _environ(hub, tmp_path / "hf"), str(built.digest)
    hub.write(REPO, f"{BLOCKS[0]}/{FILE}", b"made by hand")
    refused = _aot(environ, "push", digest, f"hf://{REPO}")
    assert (refused.returncode, "that aot did not make, and Spaces may load it" in refused.stderr) == (2, True)
    assert not [path for path in hub.files(REPO) if path.startswith("v1/")]
    assert _aot(environ, "push", digest, f"hf://{REPO}", "--variant", "cpu").returncode == 0
    assert hub.read(REPO, f"{BLOCKS[0]}/{FILE}") == b"made by hand"
    assert {f"{BLOCKS[0]}.cpu/{FILE}", "config.cpu.json"} <= {*hub.files(REPO)}
    assert _space(environ, "flux", REPO, "blocks", "cpu")[1] <= 1e-5
    assert _aot(environ, "push", digest, f"hf://{REPO}", "--replace").returncode == 0
    assert _aot(environ, "push", digest, f"hf://{REPO}").returncode == 0
    config = json.loads(hub.read(REPO, "config.json"))
    config["aot"][BLOCKS[0]]["calls"] = "float32[1,2,3]"
    hub.write(REPO, "config.json", json.dumps({**config, "kernels": [], "aot": {**config["aot"], "Other": {}}}).encode())
    refused = _aot(environ, "push", digest, f"hf://{REPO}")
    assert "for calls float32[1,2,3], and Spaces may load it" in refused.stderr
    assert _aot(environ, "push", digest, f"hf://{REPO}", "--replace").returncode == 0
    kept = json.loads(hub.read(REPO, "config.json"))
    assert ({*kept}, {*kept["aot"]}) == ({"aot", "kernels"}, {*BLOCKS, "Other"})
    hub.write(REPO, "config.json", b'{"_class_name": "FluxTransformer2DModel"}')
    refused = _aot(environ, "push", digest, f"hf://{REPO}")
    assert (refused.returncode, "is of something else: it says _class_name" in refused.stderr) == (2, True)
    named = _aot(environ, "push", digest, f"hf://{REPO}", "--variant", "../x")
    assert (named.returncode, "is no name of a variant" in named.stderr) == (2, True)


@pytest.mark.compiles
def test_a_component_is_one_package_along_a_range_of_sizes(home: Path, hub: Hub, tmp_path: Path) -> None:
    assert home
    pipe, call = make("flux")
    sizes = [lambda pipe: picture(pipe, call), lambda pipe: picture(pipe, {**call, "height": 64})]
    whole = aot.build(pipe, sizes, gpu="cpu", scope="whole", axes=True, components=("transformer",), layout="spaces", options=O0)
    environ = _environ(hub, tmp_path / "hf")
    assert _aot(environ, "push", str(whole.digest), f"hf://{REPO}").returncode == 0
    assert f"package/root/{FILE}" in hub.files(REPO)
    replaced, error = _space(environ, "flux", REPO, "whole")
    assert (replaced, error <= 1e-5) == (1, True)


@pytest.mark.compiles
def test_packages_for_a_gpu_that_is_absent_hold_its_machine_code_and_no_sources(home: Path) -> None:
    pipe, call = make("flux")
    made = aot.build(
        pipe, lambda pipe: picture(pipe, call), gpu="rtx-pro-6000-server", components=("transformer",), layout="spaces", options=O0
    )
    layer = made.manifest.layer("spaces")
    assert layer is not None
    local = local_store()
    unpack(local, open_guard(local).admit(local, made.digest), layer=layer, into=home / "unpacked", ledger=Ledger())
    for name in BLOCKS:
        with zipfile.ZipFile(BytesIO((home / "unpacked" / name / FILE).read_bytes())) as archive:
            (library,) = [path for path in archive.namelist() if path.endswith(".so")]
            (library,) = (path for path in archive.namelist() if path.endswith(".so"))
            (source,) = (path for path in archive.namelist() if path.endswith((".cpp", ".cu")))
            # torch up to 2.12 looks beside a source for what is said of the library; and finds nothing else there
            assert (source, archive.read(source)) == (f"{library.removesuffix('.so')}.cpp", NO_SOURCE)
            assert f"{library.removesuffix('.so')}_metadata.json" in archive.namelist()
            assert {*architectures(archive.read(library))} == {"sm_120"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scope": "whole"}, "there is one package, and 2 components: transformer, vae.decoder"),
        ({"heights": (32, 64)}, "has room for one graph, and there are 2"),
        ({"lora_rank": 4}, "a Space has no slots to give"),
        ({"options": "freezing", "scope": "whole"}, "a Space binds weights by name"),
        ({"components": ("vae.decoder",)}, "no component names repeated blocks"),
        ({"pipeline": "lumina2", "scope": "whole", "components": ("transformer",)}, "so parts of it are compiled and not the whole"),
        ({"layout": "space"}, "Did you mean 'spaces'"),
    ],
)
def test_what_no_space_could_take_is_told_before_anything_is_compiled(home: Path, more: dict[str, Any], words: str) -> None:
    assert home
    more = dict(more)
    pipe, call = make(more.pop("pipeline", "flux"))
    heights = more.pop("heights", (call["height"],))
    calls = [lambda pipe, height=height: picture(pipe, {**call, "height": height}) for height in heights]
    options = {"mode": "freezing"} if more.pop("options", "") else O0
    with pytest.raises((BadInput, Unsupported)) as raised:
        aot.build(pipe, calls, gpu="cpu", **{"layout": "spaces", "options": options, **more})
    assert words in f"{raised.value.message} {raised.value.remedy}"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = getattr(self, "table", None)
        found: torch.Tensor = self.linear(x)
        return found if table is None else found * table


def _plain(module: nn.Module) -> None:
    module.table = torch.ones(256)


def _unsaved(module: nn.Module) -> None:
    module.register_buffer("table", torch.ones(256), persistent=False)


def _cast(module: nn.Module) -> None:
    apply_layerwise_casting(module, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=())


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (_plain, "has constants that no state_dict names"),
        (_unsaved, "has constants that no state_dict names: table"),
        (_cast, "casts its weights layer by layer"),
        (_gguf("Q8_0"), "has weights of GGUF"),
    ],
)
def test_weights_that_a_space_could_not_set_are_refused(made: Callable[[nn.Module], Any], words: str, tmp_path: Path) -> None:
    module = Block().eval().requires_grad_(False)
    made(module)
    tensors = [torch.ones(1, 256)]
    signature = Signature.of((tensors[0],), {})[0]
    with pytest.raises(Unsupported, match=words):
        compile_package(
            module, signature, (1, ()), tensors, dynamic=None, configuration=Configuration({}, False, "cpu"), package=tmp_path / FILE
        )
    assert not list(tmp_path.iterdir())


class Repository(dict[str, bytes]):
    """A repository at one commit."""

    def sizes(self, paths: list[str]) -> dict[str, int]:
        return {path: len(self[path]) for path in paths if path in self}

    def read(self, path: str, *, limit: int) -> bytes | None:
        return self.get(path)


def test_a_config_asks_for_the_kernels_of_every_package_that_is_there_and_for_somebodys_own(tmp_path: Path) -> None:
    repository = Repository()

    def pushed(folder: str, *kernels: str, replace: bool = False) -> list[Any]:
        asked = [{"repo_id": "acme/kernel", "revision": revision} for revision in kernels]
        place = tmp_path / f"{folder}-{len(kernels)}-{replace}"
        (place / folder).mkdir(parents=True)
        (place / folder / "package.pt2").write_bytes(b"package")
        config = {"aot": {folder: {"recipe": "x", "calls": "y", **({"kernels": asked} if asked else {})}}}
        (place / "config.json").write_text(json.dumps({**config, **({"kernels": asked} if asked else {})}))
        for path, content in at_root(repository, place, "", replace=replace).items():
            repository[path] = content if isinstance(content, bytes) else content.read_bytes()
        return [
            kernel if isinstance(kernel, str) else kernel["revision"] for kernel in json.loads(repository["config.json"]).get("kernels", [])
        ]

    assert pushed("A", "1") == ["1"]
    assert pushed("B", "2") == ["1", "2"]
    assert pushed("C", "2", "3") == ["1", "2", "3"]
    there = json.loads(repository["config.json"])
    repository["config.json"] = json.dumps({**there, "kernels": ["somebody's own", *there["kernels"]]}).encode()
    assert pushed("A", "4", replace=True) == ["somebody's own", "4", "2", "3"]
    assert pushed("B", replace=True) == ["somebody's own", "4", "2", "3"]
    assert pushed("C", replace=True) == ["somebody's own", "4"]


def test_a_config_asks_for_what_get_kernel_could_fetch_and_names_the_rest() -> None:
    commit, digest = "0" * 40, f"sha256:{'1' * 64}"
    texts = {
        "whole": f"hf://kernels/acme/k@{commit}/build/torch-cpu/x.so {digest} with {digest} for a",
        "file": f"hf://acme/k@{commit}/x.so {digest} for b",
        "own": "the program for c",
    }
    found = json.loads(about(Key({"recipe": "x"}), {"Block": "calls"}, [Kernel.parse(*item) for item in texts.items()]))
    assert found["kernels"] == found["aot"]["Block"]["kernels"] == [{"repo_id": "acme/k", "revision": commit}]
    assert found["aot"]["Block"]["operators"] == f"file: {texts['file']}; own: {texts['own']}"
