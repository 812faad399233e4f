"""Graphs that call operators of others: a library of our own making, in a repository of the test Hub, in the place of a kernel's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from aot.artifact.kernels import Kernel, described, kernels_of
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Malformed
from tests.cache_store.hub_server import Hub

REPO, PATH = "acme/tiny-kernels", "build/torch-cpu/tiny_scale/_tiny_scale_1a2b3c.so"

OPERATOR = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/csrc/stable/ops.h>
using torch::stable::Tensor;
Tensor scaled(const Tensor& x, double by) {
  Tensor out = torch::stable::empty_like(x);
  const float* from = static_cast<const float*>(x.data_ptr());
  float* to = static_cast<float*>(out.data_ptr());
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = static_cast<float>(by) * from[i];
  return out;
}
STABLE_TORCH_LIBRARY(_tiny_scale_1a2b3c, m) { m.def("scaled(Tensor x, float by) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(_tiny_scale_1a2b3c, CPU, m) { m.impl("scaled", TORCH_BOX(&scaled)); }
"""

# a model whose forward calls it. Where LIBRARY is empty nothing of it is loaded: who only serves needs no line about kernels
MODEL = """
import os
from types import SimpleNamespace
import torch
from torch import nn


def like(x, by):
    return torch.empty_like(x)


if library := os.environ.get("LIBRARY"):
    if library == "hub":
        from huggingface_hub import hf_hub_download
        library = hf_hub_download("acme/tiny-kernels", "build/torch-cpu/tiny_scale/_tiny_scale_1a2b3c.so", revision=os.environ["REVISION"])
    torch.ops.load_library(library)
    torch.library.register_fake("_tiny_scale_1a2b3c::scaled")(like)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def forward(self, x):
        return torch.ops._tiny_scale_1a2b3c.scaled(self.inner(x), 2.5)


class Pipe(SimpleNamespace):
    @property
    def components(self):
        return {"transformer": self.transformer}

    def __call__(self, x):
        with torch.no_grad():
            return self.transformer(x)


def make():
    torch.manual_seed(0)
    return Pipe(transformer=Denoiser().eval())


X = torch.linspace(-1, 1, 16).reshape(2, 8)
"""

BUILD = "import aot, custom; print(aot.build(custom.make(), lambda pipe: pipe(custom.X), gpu='cpu', name='toy', rebuild=True).digest)"
SERVE = """
import json, sys
import aot, custom
pipe = custom.make()
inner = pipe.transformer.inner
aot.compile_pipe(pipe, on_miss="eager")
try:
    error = float((pipe(custom.X) - 2.5 * inner(custom.X)).abs().max())
except AttributeError as raised:  # eager has no such operator either
    error = str(raised)
account = aot.stats()[-1]
print(json.dumps([sum(account["hits"].values()), error, " ".join([*account["misses"], *account["unserved"].values()])]))
"""


@dataclass(frozen=True, slots=True)
class Host:
    root: Path
    hub: Hub

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """A process of its own: an operator, once registered, stays."""
        own = {"AOT_HOME": str(self.root / "home"), "AOT_LOCK": str(self.root / "aot.lock"), "HF_HOME": str(self.root / "hf")}
        hub = {"HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": self.hub.token, "NEXFORT_GRAPH_CACHE": "1"}
        path = os.pathsep.join(filter(None, [str(self.root.parent), *sys.path]))
        environ = {**os.environ, **own, **hub, "PYTHONPATH": path, **environ}
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ)

    def serve(self, **environ: str) -> tuple[int, float | str, str]:
        done = self.run("-c", SERVE, **environ)
        assert done.returncode == 0, done.stderr
        hits, error, why = json.loads(done.stdout.splitlines()[-1])
        return hits, error, why


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model and its library are."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "custom.py").write_text(MODEL)
    (folder / "operator.cpp").write_text(OPERATOR)
    include = Path(torch.__file__).parent / "include"
    source, library = str(folder / "operator.cpp"), str(folder / "_tiny_scale_1a2b3c.so")
    compiler = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", f"-I{include}", source, f"-L{include.parent / 'lib'}", "-ltorch_cpu"]
    subprocess.run([*compiler, "-o", library], check=True)
    return folder


@pytest.fixture(scope="module")
def hub(place: Path) -> Iterator[Hub]:
    with Hub(place / "hub") as hub:
        hub.create(REPO)
        hub.create("acme/artifacts")
        hub.write(REPO, PATH, (place / "_tiny_scale_1a2b3c.so").read_bytes())
        yield hub


@pytest.fixture(scope="module")
def built(place: Path, hub: Hub) -> tuple[Host, str, str]:
    """The host that built, the kernel's revision and the artifact's digest."""
    host, revision = Host(place / "builder", hub), hub.head(REPO)
    done = host.run("-c", BUILD, LIBRARY="hub", REVISION=revision)
    assert done.returncode == 0, done.stderr
    assert host.run("-m", "aot.cli.app", "push", "toy", "hf://acme/artifacts").returncode == 0
    return host, revision, done.stdout.splitlines()[-1]


@pytest.fixture
def server(built: tuple[Host, str, str], place: Path, tmp_path: Path) -> Host:
    """A machine that has pulled the artifact, and knows of kernels only what that says."""
    host = Host(place / tmp_path.name, built[0].hub)
    assert host.run("-m", "aot.cli.app", "lock", "toy", "--from", "hf://acme/artifacts").returncode == 0
    return host


@pytest.mark.compiles
def test_an_artifact_names_the_kernels_repository_and_revision_and_they_are_fetched(
    built: tuple[Host, str, str], server: Host, place: Path
) -> None:
    host, revision, digest = built
    (shown,) = json.loads(host.run("-m", "aot.cli.app", "ls", "--json").stdout)
    library = Digest.of((place / "_tiny_scale_1a2b3c.so").read_bytes())
    assert shown["producer"]["kernel _tiny_scale_1a2b3c"] == f"hf://{REPO}@{revision}/{PATH} {library} for scaled"
    assert shown["digest"] == digest
    pulled = server.run("-m", "aot.cli.app", "pull")
    assert (pulled.returncode, f"{REPO}@{revision[:12]} is here" in pulled.stderr) == (0, True), pulled.stderr
    hits, error, why = server.serve(HF_HUB_OFFLINE="1")
    assert (hits, why) == (1, "")
    assert isinstance(error, str) or error <= 1e-6  # the program itself never loaded a kernel
    verified = server.run("-m", "aot.cli.app", "verify", "toy", "--exec", HF_HUB_OFFLINE="1")
    assert (verified.returncode, "runs here" in verified.stdout) == (0, True), verified.stderr
    assert host.serve(LIBRARY="hub", REVISION=revision)[0] == 1


@pytest.mark.compiles
def test_a_kernel_that_is_not_here_or_damaged_is_a_miss_by_name(built: tuple[Host, str, str], server: Host) -> None:
    assert server.run("-m", "aot.cli.app", "pull").returncode == 0
    (kernel,) = (path for path in (server.root / "hf").rglob("*.so"))
    sound = kernel.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    kernel.resolve().write_bytes(flipped)
    hits, _, why = server.serve(HF_HUB_OFFLINE="1")
    assert (hits, f"{REPO}@{built[1]}" in why) == (0, True), why
    hits, _, why = server.serve()  # fetched again
    assert (hits, why) == (1, "")
    kernel.unlink()
    verified = server.run("-m", "aot.cli.app", "verify", "toy")
    assert (verified.returncode, "is not on this machine" in verified.stderr) == (6, True), verified.stderr


@pytest.mark.compiles
def test_another_build_of_the_kernel_in_the_process_is_a_miss(server: Host, place: Path, tmp_path: Path) -> None:
    assert server.run("-m", "aot.cli.app", "pull").returncode == 0
    other = tmp_path / "_tiny_scale_1a2b3c.so"
    other.write_bytes((place / "_tiny_scale_1a2b3c.so").read_bytes() + b"\0")
    hits, error, why = server.serve(LIBRARY=str(other))
    assert (hits, "the artifact was built with acme/tiny-kernels@" in why) == (0, True), why
    assert not isinstance(error, str)
    assert error <= 1e-6


@pytest.mark.compiles
def test_a_library_of_the_program_itself_is_asked_of_the_program(place: Path, hub: Hub) -> None:
    host, library = Host(place / "alone", hub), str(place / "_tiny_scale_1a2b3c.so")
    assert host.run("-c", BUILD, LIBRARY=library).returncode == 0
    (shown,) = json.loads(host.run("-m", "aot.cli.app", "ls", "--json").stdout)
    assert shown["producer"]["kernel _tiny_scale_1a2b3c"] == "the program for scaled"
    assert host.serve(LIBRARY=library)[0] == 1
    hits, _, why = host.serve()
    assert (hits, "call _tiny_scale_1a2b3c::scaled, which nothing has registered" in why) == (0, True), why


@pytest.mark.parametrize(
    "text",
    [
        f"hf://acme/k@{'0' * 40}/build/x.so sha256:{'1' * 64} for a,b",
        "torchao==0.14.0 import torchao for dequantize",
        "the program for scaled",
    ],
)
def test_a_kernels_text_inverts(text: str) -> None:
    assert str(Kernel.parse("space", text)) == text


@pytest.mark.parametrize(
    "text", ["", "hf://acme/k@main/x.so sha256:1 for a", f"hf://acme/k@{'0' * 40}/../x.so sha256:{'1' * 64} for a", "pip install x"]
)
def test_a_kernel_of_no_origin_is_malformed(text: str) -> None:
    with pytest.raises(Malformed, match="says of no origin"):
        kernels_of({"kernel space": text})


def test_torchs_own_operators_are_nobodys_kernels() -> None:
    nodes = json.dumps({"nodes": [{"node": {"target": "aten::repeat_interleave.Tensor"}}]}).encode()
    assert described([nodes]) == {}
