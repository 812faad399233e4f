"""Packages that others made: `spaces` itself writes them here, the test Hub holds them, and we read, refuse or serve them."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import aot
from aot.artifact.borrowed import order_of, unanswered
from aot.artifact.certificate import compare
from aot.artifact.kinds import PACKAGE
from aot.artifact.packaged import _ABOUT, _SINCE, Packaged, _about, _operators_of
from aot.cache_store.errors import Malformed, Missing, Untrusted
from aot.errors import BadInput, LoadFailed, Miss, Unsupported
from aot.machine.fit import built_for
from aot.machine.target import Target, Weight
from aot.model.convention import Convention
from aot.model.signature import Signature
from aot.serving.dispatch import dispatchers
from aot.shipping.packages import Folder, PackagesStore
from tests.cache_store.hub_server import Hub
from tests.pipelines import make

REPO = "zerogpu-aoti/Tiny"
DOUBLE, SINGLE = "FluxTransformerBlock", "FluxSingleTransformerBlock"
FAULTS = 300

# an author, with nothing but torch and spaces
AUTHOR = """
import shutil, sys
from pathlib import Path
import torch
from spaces.zero.torch.aoti import aoti_capture, aoti_compile_and_save
from tests.pipelines import make

folder = Path(sys.argv[1])
pipe, call = make("flux")
with torch.no_grad():
    for name in pipe.transformer._repeated_blocks:
        block = next(module for module in pipe.transformer.modules() if type(module).__name__ == name)
        with aoti_capture(block) as captured:
            pipe(**{**call, "output_type": "pt"})
        aoti_compile_and_save(folder, torch.export.export(block, captured.args, captured.kwargs))
        (folder / "root").rename(folder / name)
"""


def picture(pipe: Any, call: dict[str, Any]) -> Any:
    with torch.no_grad():
        return pipe(**{**call, "generator": torch.Generator().manual_seed(0), "output_type": "pt"})[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The packages by their place."""
    folder = tmp_path_factory.mktemp("author")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CXXFLAGS": "-O0"}
    done = subprocess.run([sys.executable, "-c", AUTHOR, str(folder)], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    return {path.parent.name: path.read_bytes() for path in folder.rglob(PACKAGE)}


@pytest.fixture
def folder(made: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds them, on a machine that trusts nobody yet."""
    for variable, name in (("AOT_HOME", "home"), ("AOT_LOCK", "aot.lock")):
        monkeypatch.setenv(variable, str(tmp_path / name))
    return _put(tmp_path / "tiny", made)


def _put(folder: Path, packages: dict[str, bytes]) -> Path:
    for place, data in packages.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / PACKAGE).write_bytes(data)
    return folder


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Pins the packages, and puts them into a pipeline; returns its call."""
    pipes = []

    def served(store: str = str(folder), **options: Any) -> tuple[Any, dict[str, Any]]:
        aot.lock(store)
        aot.pull()
        monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
        pipe, call = make("flux")
        pipes.append(pipe)
        aot.compile_pipe(pipe, ignores=("vae.decoder",), **{"on_miss": "eager", **options})
        return pipe, call

    yield served
    for pipe in pipes:
        aot.restore(pipe)


def _changed(package: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """A sound package with other members."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    change(members)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


def _library(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith(".so"))


def _in_library(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        assert len(old) == len(new)
        name = _library(members)
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    return change


def _said(**about: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        for name in [name for name in members if name.endswith("_metadata.json")]:
            members[name] = json.dumps({**json.loads(members[name]), **about}).encode()

    return change


def _without(ending: str) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        for name in [name for name in members if name.endswith(ending)]:
            del members[name]

    return change


def _for_blackwell(members: dict[str, bytes]) -> None:
    """As a GPU's: its machine code lies beside the library."""
    _said(AOTI_DEVICE_KEY="cuda")(members)
    header = bytearray(64)
    header[:4], header[8] = b"\x7fELF", 8
    struct.pack_into("<H", header, 18, 190)
    struct.pack_into("<I", header, 48, 120 << 8)
    members[f"{Path(_library(members)).parent}/kernel.cubin"] = bytes(header)


def _of_earlier_torch(members: dict[str, bytes]) -> None:
    """Without what later versions put into every library."""
    name = _library(members)
    for version, mark in _SINCE:
        if version.startswith(("2.13", "2.14", "2.15")):
            members[name] = members[name].replace(mark, b"x" * len(mark))


@pytest.mark.compiles
def test_what_a_package_is_for_is_read_from_its_bytes(made: dict[str, bytes]) -> None:
    minor = ".".join(torch.__version__.split(".")[:2])
    for data in made.values():
        found = Packaged.read(data)
        assert (found.device, found.architectures) == ("cpu", ())
        assert minor in found.torch.split(" or ")
        assert not unanswered(found.needs)
    pipe, _ = make("flux")
    block = pipe.transformer.transformer_blocks[0]
    state = {name: tuple(tensor.shape) for name, tensor in block.state_dict().items()}
    assert {name: spec.shape for name, spec in Packaged.read(made[DOUBLE]).weights} == state


@pytest.mark.compiles
def test_no_fault_of_a_package_is_taken_for_a_sound_one_and_none_ends_the_process(made: dict[str, bytes]) -> None:
    """A flipped bit, an end that is missing, a stretch of zeros: refused in words, or of no consequence: the very same is read."""
    chance, package = random.Random(0), made[SINGLE]
    sound, refused = Packaged.read(package), 0
    for number in range(FAULTS):
        damaged = bytearray(package)
        place = chance.randrange(len(package)) if number % 2 else chance.randrange(len(package) - 4096, len(package))
        if number % 3 == 0:
            del damaged[place:]
        elif number % 3 == 1:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            damaged[place : place + 64] = bytes(64)
        if damaged == package:
            continue
        try:
            found = Packaged.read(bytes(damaged))
        except Malformed as error:
            refused += 1
            assert len(error.message) > 10
        else:
            assert (found, found.files) == (sound, sound.files)
    assert refused > FAULTS // 2


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without(".cpp"), "no source beside its library"),
        (_without(".so"), "holds 0 libraries"),
        (_in_library(b"AOTInductorModelContainerRun\0", b"AOTInductorModelContainerRan\0"), "is no graph of AOTInductor's"),
        (_in_library(b"norm.linear.weight", b"norm.linear.heft\0\0"), "its source is of another library"),
        (lambda members: members.update({_library(members): b"\x7fELF" + bytes(20)}), "its library is damaged"),
        (lambda members: members.update({_library(members): members[_library(members)][:5000]}), "its library is"),
        (lambda members: members.update({"b/data/aotinductor/model/x.wrapper.so": b""}), "holds 2 graphs"),
    ],
)
def test_a_package_that_is_not_what_it_says_is_refused_in_words(
    made: dict[str, bytes], change: Callable[[dict[str, bytes]], None], words: str
) -> None:
    with pytest.raises(Malformed) as raised:
        Packaged.read(_changed(made[SINGLE], change))
    assert words in raised.value.message


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_for_blackwell, "device: built for cuda, here cpu"),
        (_said(AOTI_CPU_ISA="ZVECTOR"), "this CPU lacks zvector"),
        (_of_earlier_torch, "torch: built for 2.11 or 2.12"),
    ],
)
def test_packages_for_another_machine_or_torch_are_refused_and_nothing_is_mapped(
    made: dict[str, bytes], folder: Path, serve: Callable[..., Any], change: Callable[[dict[str, bytes]], None], words: str
) -> None:
    _put(folder, {place: _changed(data, change) for place, data in made.items()})
    (offer,) = aot.lookup(str(folder))
    assert any(words in reason for reason in offer.refused)
    with pytest.raises(Miss, match=r"none of the 1 artifacts of .*tiny would be loaded there"):
        aot.pull(str(folder))
    with pytest.raises(Miss):
        serve()
    assert not _mapped()


def test_a_gpus_packages_are_for_its_architecture_alone() -> None:
    parts = {"layout": "packaged", "target.device": "cuda", "target.arch": "sm_120", "target.torch": "2.11 or 2.12"}
    parts["target.system"] = "linux-x86_64"
    here = Target("cuda", "NVIDIA H200", "2.11.0", "0.42.1", "linux-x86_64", "sm_90", "3.6.0", "13.0")
    assert [(one.field, one.weight) for one in built_for(parts, here)] == [("arch", Weight.BLOCKING)]
    assert built_for(parts, replace(here, arch="sm_120")) == []
    assert [one.field for one in built_for(parts, replace(here, arch="sm_120", torch="2.14.1"))] == ["torch"]


def _mapped() -> list[str]:
    """What of packages this process has mapped."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "aot-package" in line]


@pytest.mark.compiles
def test_nothing_of_a_stranger_is_loaded_before_it_was_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = folder.as_uri()
    with pytest.raises(Untrusted, match="is not signed, and not pinned"):
        aot.pull(str(folder))
    pipe, call = make("flux")
    expected = picture(pipe, call)
    aot.enable(pipe, store, ignores=("vae.decoder",), on_miss="eager")
    assert "is not signed, and not pinned" in aot.stats()[-1]["unserved"]["transformer"]
    assert torch.equal(picture(pipe, call), expected)
    assert not _mapped()
    aot.restore(pipe)
    (pin,) = aot.lock(str(folder))
    aot.enable(pipe, store, ignores=("vae.decoder",), on_miss="error")
    assert compare(picture(pipe, call), expected).relative_l2 <= 1e-5
    assert aot.stats()[-1]["artifacts"] == [str(pin.digest)]
    aot.restore(pipe)
    monkeypatch.setenv("AOT_LOCK", str(folder / "another.lock"))
    with pytest.raises(Untrusted):
        aot.verify(str(pin.digest))


@pytest.mark.compiles
def test_a_repository_of_the_hub_is_pulled_verified_and_served(
    made: dict[str, bytes], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub(tmp_path / "hub") as hub:
        hub.create(REPO)
        for place, data in made.items():
            hub.write(REPO, f"{place}/{PACKAGE}", data)
        hub.write(REPO, "README.md", b"# by hand\n")
        environ = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(tmp_path / "hf"),
            "NEXFORT_GRAPH_CACHE": f"hf://{REPO}",
        }
        environ = {**os.environ, **environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ)

        refused = run("-m", "aot.cli.app", "pull", f"hf://{REPO}")
        assert (refused.returncode, "is not signed, and not pinned" in refused.stderr) == (11, True)
        assert run("-m", "aot.cli.app", "lock", f"hf://{REPO}").returncode == 0
        assert f"hf://{REPO}@" in (tmp_path / "aot.lock").read_text()
        pulled = run("-m", "aot.cli.app", "pull", f"hf://{REPO}")
        assert (pulled.returncode, "pinned in the lock file" in pulled.stderr) == (0, True)
        verified = run("-m", "aot.cli.app", "verify", "zerogpu-aoti.tiny", "--exec")
        assert (verified.returncode, "in a process of its own" in verified.stdout) == (0, True)
        hub.write(REPO, "README.md", b"# another commit\n")
        served = run("-c", SERVER)
        assert (served.returncode, served.stdout.strip()[-6:]) == (0, "served"), served.stderr
    monkeypatch.setenv("NEXFORT_GRAPH_CACHE", "1")
    assert aot.verify("zerogpu-aoti.tiny").files == len(made)


SERVER = """
import aot
from aot.artifact.certificate import compare
from tests.pipelines import make
from tests.serving.test_packages import picture

pipe, call = make("flux")
expected = picture(pipe, call)
aot.compile_pipe(pipe, ignores=("vae.decoder",), on_miss="error")
assert not aot.ready(pipe.transformer), "nothing is promised before it was compared"
assert compare(picture(pipe, call), expected).relative_l2 <= 1e-5
assert aot.ready(pipe.transformer), aot.ready(pipe.transformer)
print("served")
"""


@pytest.mark.compiles
def test_each_block_is_served_with_its_own_weights_and_others_when_they_are_replaced(serve: Callable[..., Any]) -> None:
    plain, call = make("flux")
    pipe, _ = serve()
    assert compare(picture(pipe, call), picture(plain, call)).relative_l2 <= 1e-5
    hits = sum(aot.stats()[-1]["hits"].values())
    assert hits == 2 * len(dispatchers(pipe.transformer))  # two steps
    with torch.no_grad():
        for model in (plain, pipe):
            block = model.transformer.single_transformer_blocks[1]
            block.proj_mlp.weight.mul_(1.5)
            block.norm.linear.bias = torch.nn.Parameter(block.norm.linear.bias + 0.25)
    assert compare(picture(pipe, call), picture(plain, call)).relative_l2 <= 1e-5
    assert sum(aot.stats()[-1]["hits"].values()) == 2 * hits
    assert not aot.stats()[-1]["misses"]


def _hook(block: Any) -> None:
    block.attn.register_forward_hook(
        lambda _, __, output: tuple(1.1 * one for one in output) if isinstance(output, tuple) else 1.1 * output
    )


def _eps(block: Any) -> None:
    block.attn.norm_q.eps = 0.5


def _code(block: Any) -> None:
    block.attn.to_q.forward = lambda x: torch.nn.functional.linear(2 * x, block.attn.to_q.weight, block.attn.to_q.bias)


@pytest.mark.compiles
@pytest.mark.parametrize("change", [_hook, _eps, _code])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_changed_in_the_model_is_never_answered_by_the_package(
    serve: Callable[..., Any], change: Callable[[Any], None], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, call = make("flux")
    change(plain.transformer.single_transformer_blocks[0])
    expected = picture(plain, call)
    pipe, _ = serve()
    if when == "before":
        aot.restore(pipe)
        change(pipe.transformer.single_transformer_blocks[0])
        aot.compile_pipe(pipe, ignores=("vae.decoder",), on_miss="eager")
    else:
        picture(pipe, call)
        change(pipe.transformer.single_transformer_blocks[0])
    got = picture(pipe, call)
    assert compare(got, expected).relative_l2 <= 1e-5
    assert aot.stats()[-1]["misses"]
    assert sum(aot.stats()[-1]["hits"].values()) > 0  # the other blocks are served


@pytest.mark.compiles
def test_another_size_is_a_miss_that_names_it(serve: Callable[..., Any]) -> None:
    plain, call = make("flux")
    pipe, _ = serve()
    larger = {**call, "height": 2 * call["height"]}
    assert torch.equal(picture(pipe, larger), picture(plain, larger))
    assert any("axis 1 built for" in sentence for sentence in aot.stats()[-1]["misses"])
    aot.restore(pipe)
    with pytest.raises(Miss, match="compared with the model at the first call"):
        serve(strict=True)


@pytest.mark.compiles
def test_a_package_that_dies_takes_nobody_with_it(made: dict[str, bytes], folder: Path, serve: Callable[..., Any]) -> None:
    """Sound as an archive, and made by this torch: only running tells."""
    symbol = b"AOTInductorModelContainerRun\0"

    def spoilt(members: dict[str, bytes]) -> None:
        library = bytearray(members[name := _library(members)])
        place = _code_of(bytes(library), symbol)
        library[place : place + 2] = b"\x0f\x0b"  # ud2
        members[name] = bytes(library)

    _put(folder, {place: _changed(data, spoilt) for place, data in made.items()})
    plain, call = make("flux")
    pipe, _ = serve()
    assert "did not come back" in aot.stats()[-1]["unserved"]["transformer"]
    assert torch.equal(picture(pipe, call), picture(plain, call))
    with pytest.raises(LoadFailed, match="did not come back"):
        aot.verify(aot.lookup(str(folder))[0].row.ref.name, execute=True)


def _code_of(library: bytes, symbol: bytes) -> int:
    """Where in the file the code of an exported function begins; in the first segments addresses are places in the file."""
    (sections,), (count,) = struct.unpack_from("<Q", library, 40), struct.unpack_from("<H", library, 60)
    tables = [struct.unpack_from("<IIQQQQIIQQ", library, sections + 64 * place) for place in range(count)]
    table = next(one for one in tables if one[1] == 11)
    names = tables[table[6]][4]
    for place in range(table[4], table[4] + table[5], 24):
        name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", library, place)
        if library[names + name : names + name + len(symbol)] == symbol:
            return int(value)
    raise AssertionError(symbol)


@pytest.mark.compiles
def test_a_symbol_that_this_torch_does_not_have_is_named(made: dict[str, bytes], folder: Path, serve: Callable[..., Any]) -> None:
    unknown = _in_library(b"aoti_torch_get_data_ptr\0", b"aoti_torch_get_data_qtr\0")
    _put(folder, {place: _changed(data, unknown) for place, data in made.items()})
    serve()
    assert "asks for aoti_torch_get_data_qtr, which torch" in aot.stats()[-1]["unserved"]["transformer"]


@pytest.mark.compiles
def test_a_package_of_other_weights_is_for_no_block_of_the_model(made: dict[str, bytes], folder: Path, serve: Callable[..., Any]) -> None:
    _put(folder, {SINGLE: made[DOUBLE], DOUBLE: made[SINGLE]})
    serve()
    assert "is not for" in aot.stats()[-1]["unserved"]["transformer"]


@pytest.mark.compiles
def test_variants_are_artifacts_of_their_own(made: dict[str, bytes], folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _put(folder, {f"{place}.fp8": data for place, data in made.items()})
    _put(folder / "bf16/torch2.14", made)
    offers = aot.lookup(str(folder))
    assert {offer.row.part("variant") for offer in offers} == {"published", "fp8", "bf16/torch2.14"}
    _put(folder, {f"{DOUBLE}.old": b"no package"})
    with caplog.at_level(logging.WARNING, "aot"):
        assert len(aot.lookup(str(folder))) == len(offers)
    assert f"{DOUBLE}.old/{PACKAGE}: it is damaged, or no package" in caplog.text
    (pin,) = aot.lock(str(folder), variant="fp8")
    assert pin.digest == next(offer.row.digest for offer in offers if offer.row.part("variant") == "fp8")


@pytest.mark.compiles
def test_the_same_packages_are_the_same_artifact(made: dict[str, bytes], folder: Path) -> None:
    twice = [[entry.digest for entry in PackagesStore(Folder(folder)).entries()] for _ in range(2)]
    assert twice[0] == twice[1]
    _put(folder, {SINGLE: _changed(made[SINGLE], lambda _: None)})  # other bytes, if only the archive's
    assert [entry.digest for entry in PackagesStore(Folder(folder)).entries()] != twice[0]


def test_a_folder_without_packages_or_artifacts_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AOT_HOME", str(tmp_path / "home"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Missing, match="has no artifacts, and no packages"):
        aot.pull(str(tmp_path / "empty"))
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(BadInput, match="a store of one name"):
        aot.pull("pixart-alpha")
    _put(tmp_path / "spoilt", {DOUBLE: b"no package"})
    with pytest.raises(Malformed, match=f"{DOUBLE}/{PACKAGE}: it is damaged, or no package"):
        aot.pull(str(tmp_path / "spoilt"))


@pytest.mark.compiles
def test_calls_that_a_package_was_not_made_for_are_told_by_name(made: dict[str, bytes]) -> None:
    packaged = Packaged.read(made[SINGLE])
    pipe, _ = make("flux")
    block = pipe.transformer.single_transformer_blocks[0]
    convention = Convention(type(block).forward.__get__(block))
    tensors = {name: torch.zeros(given.least("cpu").shape) for name, given in zip(("hidden_states",), packaged.inputs, strict=False)}
    signature = Signature.of(*convention.canonical((), {**tensors, "encoder_hidden_states": None, "temb": None}))[0]
    with pytest.raises(Unsupported, match=r"the call gives NoneType where the package was made with builtins\.tuple"):
        order_of(packaged, signature, convention)


def test_json_that_is_too_deep_to_be_read_is_malformed() -> None:
    with pytest.raises(Malformed, match="which operators it calls"):
        _operators_of({"graph.json": b"[" * 100_000}, "graph.so")
    with pytest.raises(Malformed, match="is no JSON"):
        _about({f"graph{_ABOUT}": b"[" * 100_000}, "graph")
