"""Graphs that call operators of others: a library of our own making, in a repository of the test Hub, in the place of a kernel's."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import platform
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from aot.artifact.hub_kernel import HubKernel, _from_source
from aot.artifact.kernels import Installed, Kernel, described, kernels_of
from aot.artifact.operators import registrar
from aot.cache_store.digest import Digest
from aot.cache_store.errors import Corrupt, Malformed, Missing
from aot.errors import LoadFailed
from tests.cache_store.faults import refuse
from tests.cache_store.hub_server import Hub

# as one file of any repository, and as `kernels.get_kernel` has it: in a build of a repository of kernels, with Python beside it
REPO, PATH = "acme/tiny-kernels", "native/_tiny_scale_1a2b3c.so"
KERNELS, NAME = "acme/tiny-scale", "_tiny_scale_cpu_1a2b3c"
TORCH = "".join(torch.__version__.split(".")[:2])
BUILD = f"build/torch{TORCH}-cxx11-cpu-{platform.machine()}-linux"
PYTHON = {
    "__init__.py": "from ._ops import scaled\n",
    "_ops.py": """
from pathlib import Path
import torch
torch.ops.load_library(str(Path(__file__).parent / "_tiny_scale_1a2b3c.so"))

@torch.library.register_fake("_tiny_scale_1a2b3c::scaled")
def _like(x, by):
    return torch.empty_like(x)

def scaled(x, by):
    return torch.ops._tiny_scale_1a2b3c.scaled(x, by)
""",
    "metadata.json": f'{{"id": "{NAME}", "name": "tiny-scale", "version": 1, "license": "Apache-2.0", '
    '"python-depends": [], "backend": {"type": "cpu"}}',
}

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
import os, sys
from types import SimpleNamespace
import torch
from torch import nn


def like(x, by):
    return torch.empty_like(x)


library = os.environ.get("LIBRARY")
if library == "kernels":
    from kernels import get_kernel
    get_kernel("acme/tiny-scale", revision=os.environ["REVISION"], backend="cpu", trust_remote_code=True)
elif library:
    if library == "hub":
        from huggingface_hub import hf_hub_download
        library = hf_hub_download("acme/tiny-kernels", "native/_tiny_scale_1a2b3c.so", revision=os.environ["REVISION"])
    torch.ops.load_library(library)
    torch.library.register_fake("_tiny_scale_1a2b3c::scaled")(like)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def forward(self, x):
        kernel = sys.modules.get("_tiny_scale_cpu_1a2b3c", torch.ops._tiny_scale_1a2b3c)
        return kernel.scaled(self.inner(x), 2.5)


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

BUILD_IT = """
import os
import aot, custom
call = lambda pipe: pipe(custom.X)
spaces = {"layout": "spaces", "scope": "whole"} if os.environ["LIBRARY"] == "kernels" else {}
built = aot.build(custom.make(), call, gpu="cpu", name=os.environ["NAME"], rebuild=True, **spaces)
print(built.digest)
"""
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


# a package of the same, of somebody who has nothing but torch and spaces, and what is served by it
AUTHOR = """
import sys
from pathlib import Path
import torch
from spaces.zero.torch.aoti import aoti_compile_and_save
import custom
folder = Path(sys.argv[1])
with torch.no_grad():
    aoti_compile_and_save(folder / "package", torch.export.export(custom.make().transformer, (custom.X,)))
"""
BORROW = """
import json, sys
import aot, custom
aot.lock(sys.argv[1])
aot.pull()
pipe = custom.make()
inner = pipe.transformer.inner
aot.compile_pipe(pipe, on_miss="eager")
try:
    error = float((pipe(custom.X) - 2.5 * inner(custom.X)).abs().max())
except AttributeError as raised:
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
        own["KERNELS_CACHE"] = str(self.root / "kernels")
        hub = {"HF_ENDPOINT": self.hub.endpoint, "HF_TOKEN": self.hub.token, "NEXFORT_GRAPH_CACHE": "1"}
        path = os.pathsep.join(filter(None, [str(self.root.parent), *sys.path]))
        environ = {**os.environ, **own, **hub, "PYTHONPATH": path, **environ}
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ)

    def serve(self, script: str = SERVE, *words: str, **environ: str) -> tuple[int, float | str, str]:
        done = self.run("-c", script, *words, **environ)
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
        library = (place / "_tiny_scale_1a2b3c.so").read_bytes()
        for repository in (REPO, f"kernels/{KERNELS}", "acme/artifacts"):
            hub.create(repository)
        hub.write(REPO, PATH, library)
        hub.write(f"kernels/{KERNELS}", f"{BUILD}/_tiny_scale_1a2b3c.so", library)
        for name, text in PYTHON.items():
            hub.write(f"kernels/{KERNELS}", f"{BUILD}/{name}", text.encode())
        yield hub


@dataclass(frozen=True, slots=True)
class Built:
    host: Host
    name: str
    environ: dict[str, str]
    revision: str
    digest: str

    def pulled(self, root: Path) -> Host:
        """A machine that has what `aot pull` brings, and knows of kernels only what the artifact says."""
        host = Host(root, self.host.hub)
        assert host.run("-m", "aot.cli.app", "lock", self.name, "--from", "hf://acme/artifacts").returncode == 0
        done = host.run("-m", "aot.cli.app", "pull")
        assert (done.returncode, f"@{self.revision[:12]} is here" in done.stderr) == (0, True), done.stderr
        return host


def built(place: Path, hub: Hub, library: str, repository: str) -> Built:
    host, environ = Host(place / library, hub), {"LIBRARY": library, "REVISION": hub.head(repository), "NAME": f"by-{library}"}
    done = host.run("-c", BUILD_IT, **environ)
    assert done.returncode == 0, done.stderr
    assert host.run("-m", "aot.cli.app", "push", f"by-{library}", "hf://acme/artifacts").returncode == 0
    return Built(host, f"by-{library}", environ, environ["REVISION"], done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def of_file(place: Path, hub: Hub) -> Built:
    return built(place, hub, "hub", REPO)


@pytest.fixture(scope="module")
def of_kernels(place: Path, hub: Hub) -> Built:
    return built(place, hub, "kernels", f"kernels/{KERNELS}")


@pytest.mark.compiles
def test_an_artifact_names_the_file_that_registers_its_operators_and_it_is_fetched(of_file: Built, place: Path, tmp_path: Path) -> None:
    (shown,) = json.loads(of_file.host.run("-m", "aot.cli.app", "ls", "--json").stdout)
    library = Digest.of((place / "_tiny_scale_1a2b3c.so").read_bytes())
    assert shown["producer"]["kernel _tiny_scale_1a2b3c"] == f"hf://{REPO}@{of_file.revision}/{PATH} {library} for scaled"
    assert shown["digest"] == of_file.digest
    hits, error, why = of_file.pulled(place / tmp_path.name).serve(HF_HUB_OFFLINE="1")
    assert (hits, why) == (1, "")
    assert isinstance(error, str) or error <= 1e-6  # the program itself never loaded a kernel
    assert of_file.host.serve(**of_file.environ)[0] == 1


@pytest.mark.compiles
def test_a_kernel_as_the_package_kernels_has_it_is_fetched_with_its_python(of_kernels: Built, place: Path, tmp_path: Path) -> None:
    (shown,) = json.loads(of_kernels.host.run("-m", "aot.cli.app", "ls", "--json").stdout)
    library = Digest.of((place / "_tiny_scale_1a2b3c.so").read_bytes())
    said = shown["producer"]["kernel _tiny_scale_1a2b3c"]
    assert said.startswith(f"hf://kernels/{KERNELS}@{of_kernels.revision}/{BUILD}/_tiny_scale_1a2b3c.so {library} with sha256:"), said
    server = of_kernels.pulled(place / tmp_path.name)
    hits, error, why = server.serve(HF_HUB_OFFLINE="1")
    assert (hits, why) == (1, "")
    assert not isinstance(error, str)  # its module is here, as for who asked for it
    assert error <= 1e-6
    hits, _, why = server.serve(**of_kernels.environ)  # who asks for it himself, before
    assert (hits, why) == (1, "")
    verified = server.run("-m", "aot.cli.app", "verify", of_kernels.name, "--exec", HF_HUB_OFFLINE="1")
    assert (verified.returncode, "runs here" in verified.stdout) == (0, True), verified.stderr


@pytest.mark.compiles
def test_a_space_is_told_of_the_kernels_that_its_packages_call(of_kernels: Built, place: Path, tmp_path: Path) -> None:
    """By the config that `spaces` reads; and packages of strangers, which do not say whose they are, ask the process for them."""
    hub = of_kernels.host.hub
    assert json.loads(hub.read("acme/artifacts", "config.json"))["kernels"] == [{"repo_id": KERNELS, "revision": of_kernels.revision}]
    host = Host(place / tmp_path.name, hub)
    done = host.run("-c", AUTHOR, str(tmp_path / "packages"), CXXFLAGS="-O0", **of_kernels.environ)
    assert done.returncode == 0, done.stderr
    hits, error, why = host.serve(BORROW, str(tmp_path / "packages"), **of_kernels.environ)
    assert not why
    assert not isinstance(error, str)
    assert (hits, error <= 1e-6) == (1, True)
    other = Host(place / f"{tmp_path.name}-other", hub)
    hits, _, why = other.serve(BORROW, str(tmp_path / "packages"))
    assert (hits, "calls _tiny_scale_1a2b3c::scaled, which nothing has registered" in why) == (0, True), why


@pytest.mark.compiles
def test_a_damaged_kernel_is_a_miss_by_name_and_fetched_again(of_kernels: Built, place: Path, tmp_path: Path) -> None:
    server = of_kernels.pulled(place / tmp_path.name)
    (file,) = (path for path in (server.root / "kernels").rglob("__init__.py"))
    file.resolve().write_text("raise SystemExit('code that nobody pinned')")
    hits, _, why = server.serve(HF_HUB_OFFLINE="1")
    assert (hits, f"{KERNELS}@{of_kernels.revision}/{BUILD} is not the bytes" in why) == (0, True), why
    hits, _, why = server.serve()
    assert (hits, why) == (1, "")
    (source,) = (path for path in (server.root / "kernels").rglob("_ops.py") if path.is_symlink())
    (tmp_path / "other.py").write_text("raise SystemExit('bytecode that nobody pinned')")
    kept = importlib.util.cache_from_source(str(source))
    py_compile.compile(str(tmp_path / "other.py"), kept, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    hits, error, why = server.serve(HF_HUB_OFFLINE="1")
    assert (hits, why, isinstance(error, str)) == (1, "", False)


@pytest.mark.compiles
def test_every_file_of_a_kernels_build_is_promised(of_kernels: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shown,) = json.loads(of_kernels.host.run("-m", "aot.cli.app", "ls", "--json").stdout)
    kernel = Kernel.parse("_tiny_scale_1a2b3c", shown["producer"]["kernel _tiny_scale_1a2b3c"]).hub
    assert kernel is not None
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    with pytest.raises(Missing, match="is not on this machine"):
        kernel.fetch(anew=False)
    shutil.copytree(of_kernels.host.root / "kernels", tmp_path, symlinks=True, dirs_exist_ok=True)
    build = kernel.fetch(anew=False).parent
    assert kernel == HubKernel.of(build / "_tiny_scale_1a2b3c.so")
    for name in ("_tiny_scale_1a2b3c.so", "__init__.py", "_ops.py", "metadata.json"):
        file, sound = (build / name).resolve(), (build / name).read_bytes()
        file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(Corrupt, match="not the bytes that were promised"):
            kernel.fetch(anew=False)
        file.unlink()
        with pytest.raises((Corrupt, Missing)):
            kernel.fetch(anew=False)
        file.write_bytes(sound)
    (build / "__pycache__").mkdir(exist_ok=True)
    (build / "__pycache__" / "_ops.cpython-311.pyc").write_bytes(b"what Python compiled")
    kernel.fetch(anew=False)
    for more in ("more.py", "_ops/__init__.pyc", "__pycache__/more.py"):  # the second would be imported in the place of _ops.py
        (build / more).parent.mkdir(exist_ok=True)
        (build / more).write_text("")
        with pytest.raises(Corrupt):
            kernel.fetch(anew=False)
        (build / more).unlink()


@pytest.mark.compiles
def test_another_build_of_the_kernel_in_the_process_is_a_miss(of_file: Built, place: Path, tmp_path: Path) -> None:
    other = tmp_path / "_tiny_scale_1a2b3c.so"
    other.write_bytes((place / "_tiny_scale_1a2b3c.so").read_bytes() + b"\0")
    hits, error, why = of_file.pulled(place / tmp_path.name).serve(LIBRARY=str(other))
    assert (hits, "the artifact was built with acme/tiny-kernels@" in why) == (0, True), why
    assert not isinstance(error, str)
    assert error <= 1e-6


FETCHED = """
from diffusers.models import attention_dispatch as dispatch
from aot.model.attention import active, enter
backend = dispatch.AttentionBackendName.SAGE_HUB
dispatch._HUB_KERNELS_REGISTRY[backend] = dispatch._HubKernelConfig("acme/any-scale", "scaled", version=1)
enter((active(),), own=False)
print(active(), dispatch._HUB_KERNELS_REGISTRY[backend].kernel_fn.__module__)
"""


def test_a_backend_of_the_hub_that_only_the_variable_names_is_fetched(hub: Hub, place: Path) -> None:
    repository = "kernels/acme/any-scale"  # a build for whatever torch is for
    hub.create(repository)
    hub.write(repository, "build/torch-universal/_tiny_scale_1a2b3c.so", (place / "_tiny_scale_1a2b3c.so").read_bytes())
    for name, text in PYTHON.items():
        hub.write(repository, f"build/torch-universal/{name}", text.encode())
    hub.repos[repository].branches["v1"] = hub.head(repository)
    done = Host(place / "variable", hub).run("-c", FETCHED, DIFFUSERS_ATTN_BACKEND="sage_hub", DIFFUSERS_TRUST_REMOTE_KERNELS="true")
    assert done.stdout == f"sage_hub {NAME}._ops\n", done.stderr


@pytest.mark.compiles
def test_a_library_of_the_program_itself_is_asked_of_the_program(place: Path, hub: Hub) -> None:
    host, library = Host(place / "alone", hub), str(place / "_tiny_scale_1a2b3c.so")
    assert host.run("-c", BUILD_IT, LIBRARY=library, NAME="toy").returncode == 0
    (shown,) = json.loads(host.run("-m", "aot.cli.app", "ls", "--json").stdout)
    assert shown["producer"]["kernel _tiny_scale_1a2b3c"] == "the program for scaled"
    assert host.serve(LIBRARY=library)[0] == 1
    hits, _, why = host.serve()
    assert (hits, "call _tiny_scale_1a2b3c::scaled, which nothing has registered" in why) == (0, True), why


@pytest.mark.parametrize(
    "text",
    [
        f"hf://acme/k@{'0' * 40}/build/x.so sha256:{'1' * 64} for a,b",
        f"hf://kernels/acme/k@{'0' * 40}/build/torch-cpu/x.so sha256:{'1' * 64} with sha256:{'2' * 64} for a",
        "torchao==0.14.0 import torchao for dequantize",
        "the program for scaled",
    ],
)
def test_a_kernels_text_inverts(text: str) -> None:
    assert str(Kernel.parse("space", text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"hf://kernels/acme/k@{'0' * 40}/x.so sha256:{'1' * 64} with sha256:{'2' * 64} for a",
        "hf://acme/k@main/x.so sha256:1 for a",
        f"hf://acme/k@{'0' * 40}/../x.so sha256:{'1' * 64} for a",
        "pip install x",
    ],
)
def test_a_kernel_of_no_origin_is_malformed(text: str) -> None:
    with pytest.raises(Malformed, match="says of no origin"):
        kernels_of({"kernel space": text})


def test_an_installed_packages_operators_are_named_by_the_module_that_defines_them() -> None:
    from optimum import quanto  # defines by name, so that torch knows of no file

    nodes = json.dumps({"nodes": [{"node": {"target": "quanto::qbytes_mm"}}]}).encode()
    (said,) = described([nodes]).values()
    assert said == f"optimum-quanto=={version('optimum-quanto')} import {quanto.__name__}.library.qbytes_mm for qbytes_mm"
    Kernel.parse("quanto", said).load()
    with pytest.raises(LoadFailed, match=r"operators of optimum-quanto 0\.0, and here is"):
        Kernel.parse("quanto", said.replace(version("optimum-quanto"), "0.0")).load()


def test_torchs_own_operators_are_nobodys_kernels() -> None:
    nodes = json.dumps({"nodes": [{"node": {"target": "aten::repeat_interleave.Tensor"}}]}).encode()
    assert described([nodes]) == {}


def test_a_library_that_a_package_opens_itself_is_had_by_importing_the_package() -> None:
    import torchao

    libraries = [path for path in Path(torchao.__file__).parent.glob("*.so") if f"torchao.{path.name.partition('.')[0]}" not in sys.modules]
    assert libraries
    found = Installed.of(libraries[0])
    assert found is not None
    assert (found.distribution, found.module) == ("torchao", "torchao")
    found.load()


def test_an_operator_is_of_the_file_that_defines_it_whatever_is_around_it(tmp_path: Path) -> None:
    @torch.library.custom_op("aot_of_tests::decorated", mutates_args=(), schema="(Tensor x) -> Tensor")
    @torch.no_grad()
    def decorated(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    library = torch.library.Library("aot_of_tests", "FRAGMENT")
    library.define("overloaded.named(Tensor x) -> Tensor")
    other = tmp_path / "other_of_tests.py"
    other.write_text("library = Library('aot_of_tests', 'FRAGMENT')\nlibrary.define('elsewhere(Tensor x) -> Tensor')\n")
    space: dict[str, Any] = {"Library": torch.library.Library}
    exec(compile(other.read_text(), str(other), "exec"), space)
    for operators in (("decorated",), ("overloaded",), ("decorated", "overloaded")):
        assert registrar("aot_of_tests", operators) == Path(__file__)
    assert registrar("aot_of_tests", ("elsewhere",)) == other
    assert registrar("aot_of_tests", ("decorated", "elsewhere")) is None
    assert registrar("aot_of_tests", ("nowhere",)) is None


@pytest.mark.parametrize("writable", [True, False])
def test_what_was_compiled_of_other_source_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writable: bool) -> None:
    (tmp_path / "compared_of_tests.py").write_text("number = 1\n")
    (tmp_path / "other.py").write_text("number = 2\n")
    kept = importlib.util.cache_from_source(str(tmp_path / "compared_of_tests.py"))
    py_compile.compile(str(tmp_path / "other.py"), kept, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    monkeypatch.syspath_prepend(str(tmp_path))
    if not writable:
        monkeypatch.setattr(Path, "unlink", refuse(errno.EROFS))
    with _from_source(tmp_path):
        assert importlib.import_module("compared_of_tests").number == 1
    del sys.modules["compared_of_tests"]
    assert sys.pycache_prefix is None
