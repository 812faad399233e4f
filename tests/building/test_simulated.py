"""Building for a GPU that is absent: what the pipeline is asked, what comes out, and what is left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aot.artifact.facts import of_wish
from aot.artifact.key import Key
from aot.building.build import Built, build
from aot.building.plan import Plan
from aot.building.recorded import make_plan
from aot.cache_store.layer import materialise
from aot.cache_store.local import LocalStore
from aot.cli.request import parse, parse_options
from aot.cli.text import found_cubins
from aot.errors import BadInput, Unsupported
from aot.machine.device import gpus_here, open_device
from aot.machine.simulated import simulated
from aot.machine.sku import SKUS
from aot.machine.target import Allow, Target
from aot.recipes import RECIPES, find
from aot.request.options import Options
from aot.request.shape import Shape
from aot.serving.resolve import Rejected, judge
from tests.conftest import CROSS, H200, OFTEN, Artifact, cross_request, request_for
from tests.shared import quiet

pytestmark = pytest.mark.skipif(bool(gpus_here()), reason="for machines without a GPU: builds here would be real")


def _plan(name: str, **changes: Any) -> Plan:
    request = request_for(recipe=name, shapes=(find(name).variant("tiny").shape,), **{"cache_layer": False, **changes})
    if not request.simulate:
        return make_plan(find(name), request)
    with open_device(request.gpu, simulate=True) as device:
        return make_plan(find(name), request, device)


def _asked(plan: Plan) -> list[Any]:
    """What a plan would compile, by everything that a graph depends on but the device."""
    units = [(unit.component, unit.paths, unit.dtype, json.dumps(unit.signature.to_json())) for unit in plan.units]
    structures = [json.dumps(fingerprint.to_json()) for fingerprint in plan.fingerprints.values()]
    return [json.loads(json.dumps([*map(str, units), *structures]).replace("@cuda", "@cpu").replace('\\"cuda\\"', '\\"cpu\\"'))]


@pytest.mark.parametrize(("name", "scope"), zip(RECIPES, cycle(("regional", "whole")), strict=False))
def test_a_pipeline_of_fakes_makes_the_calls_that_the_real_one_makes(name: str, scope: str) -> None:
    """In half precision, where pipelines raise their VAE and schedulers compute in float32; on the GPU, every tensor of them."""
    there = _plan(name, **H200, scope=scope, dtype="float16")
    assert {spec.device for unit in there.units for spec in unit.signature.specs} == {"cuda"}
    assert _asked(there) == _asked(_plan(name, scope=scope, dtype="float16"))


@pytest.mark.parametrize("changes", [{"fuse_qkv": True}, {"options": Options.parse({"memory_format": "channels_last"})}])
def test_fused_and_channels_last_weights_are_the_same_as_fakes(changes: dict[str, Any]) -> None:
    assert _asked(_plan("sd21", **H200, **changes)) == _asked(_plan("sd21", **changes))


def test_the_largest_models_are_planned_without_their_memory() -> None:
    request = replace(request_for(recipe="sdxl", variant="full", shapes=(Shape(1024, 1024),), dtype="bfloat16"), **H200)  # type: ignore[arg-type]
    with open_device("h200", simulate=True) as device:
        plan = make_plan(find("sdxl"), request, device)
    assert sum(weight.numel() for weight in plan.modules["unet"].parameters()) > 2_500_000_000
    assert all(type(weight.data).__name__ == "FakeTensor" for weight in plan.modules["unet"].parameters())


def test_real_weights_from_a_folder_are_read_for_their_structure_alone(tmp_path: Any) -> None:
    from tests.pixart import make_pipe

    make_pipe(9).save_pretrained(tmp_path / "weights")
    ours, theirs = _plan("pixart-alpha", **H200, weights=str(tmp_path / "weights")), _plan("pixart-alpha", **H200)
    assert {name for name, _, _ in ours.key.diff(theirs.key)} == {"variant"}


class _Watched:
    """Everything that the simulation patches, as it is now."""

    def __init__(self) -> None:
        import triton
        from torch._dynamo.device_interface import CudaInterface
        from torch._inductor import config, select_algorithm
        from torch._inductor.runtime import triton_helpers, triton_heuristics
        from triton.compiler import CompiledKernel

        owners = (
            torch.cuda, CudaInterface, CudaInterface.Worker, triton_helpers, triton_heuristics.CachingAutotuner, CompiledKernel,
            select_algorithm.AlgorithmSelectorCache, nn.Module,
        )  # fmt: skip
        self.names = {(str(owner), name): value for owner in owners for name, value in vars(owner).items() if callable(value)}
        self.stream = torch._C._cuda_getCurrentRawStream
        self.config = config.save_config_portable()
        self.driver = triton.runtime.driver.__dict__.get("_active")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Watched) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("fails", [False, True])
def test_the_simulation_leaves_no_trace_in_the_process_also_when_the_build_fails(fails: bool) -> None:
    import torch._inductor.compile_fx

    before, available, initialised = _Watched(), torch.cuda.is_available(), torch.cuda.is_initialized()
    try:
        with simulated(SKUS["b200"]):
            assert torch.cuda.get_device_name() == "NVIDIA B200"
            assert _Watched() != before
            if fails:
                raise RuntimeError("a build that fails")
    except RuntimeError:
        assert fails
    assert _Watched() == before
    assert (torch.cuda.is_available(), torch.cuda.is_initialized()) == (available, initialised)
    with pytest.raises((RuntimeError, AssertionError)):
        torch.cuda.get_device_properties(0)
    compiled = torch.compile(lambda x: x + 1, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))


@pytest.mark.parametrize(("gpu", "arch"), [pytest.param(*row, marks=() if row[0] in OFTEN else pytest.mark.slow) for row in CROSS.items()])
def test_every_cubin_of_an_artifact_built_without_its_gpu_carries_its_architecture(
    crossbuilt: Callable[[str], Artifact], gpu: str, arch: str
) -> None:
    _, built = crossbuilt(gpu)
    assert list(found_cubins(built.manifest)) == [arch]
    assert found_cubins(built.manifest)[arch] >= 2
    assert built.manifest.key["target.sku"] == SKUS[gpu].name
    assert built.manifest.key["target.arch"] == arch
    assert "calls" not in built.manifest.certificate
    assert SKUS[gpu].name in built.manifest.certificate["unchecked"]
    assert [layer.kind for layer in built.manifest.layers] == ["graph"]
    assert built.manifest.certificate["golden"] == "of the eager model, on a CPU in float32"
    assert "golden.json" in {file.path for file in built.manifest.files}
    assert {"triton", "cuda", "torch"} <= set(built.manifest.producer)


@pytest.mark.slow
def test_the_same_build_again_gives_the_same_bytes_and_none_of_this_hosts_paths(
    crossbuilt: Callable[[str], Artifact], tmp_path: Path
) -> None:
    store, built = crossbuilt("h200")
    again = build(cross_request("h200"), LocalStore(tmp_path / "home"), progress=quiet, environ=os.environ)
    assert again.manifest.layers == built.manifest.layers
    _unpack(store, built, tmp_path / "files")
    for file in (tmp_path / "files").iterdir():
        for path in (str(store.root), str(Path(torch.__file__).parent), str(Path.home())):
            assert path.encode() not in file.read_bytes(), file.name


def _unpack(store: LocalStore, built: Built, into: Path) -> None:
    (layer,) = built.manifest.layers
    with store.open_blob(layer.digest) as blob:
        materialise(layer, files=built.manifest.files_of(layer), blob=blob, into=into)


# a process on a host with a driver, as far as the linker sees it; every library of a folder is opened, all symbols at once
_OPENS = """
import ctypes, os, sys
import torch
for name in sys.argv[1:]:
    ctypes.CDLL(name, mode=os.RTLD_NOW)
    print("opened")
"""


def test_a_process_with_a_driver_opens_what_was_built_without_one(crossbuilt: Callable[[str], Artifact], tmp_path: Path) -> None:
    """Every function of the driver that is called must be asked of the driver's library by name, for nothing else loads it."""
    store, built = crossbuilt("h200")
    _unpack(store, built, tmp_path / "files")
    libraries = sorted((tmp_path / "files").glob("*.so"))
    (stub,) = store.root.glob("toolchain/driver-*/libcuda.so")
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libcuda.so.1").symlink_to(stub)
    environ = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "driver")}
    command = [sys.executable, "-c", _OPENS, *map(str, libraries)]
    said = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert (said.stdout.split(), said.returncode) == (["opened"] * len(libraries), 0), said.stderr


def test_show_prints_what_machine_code_was_found(crossbuilt: Callable[[str], Artifact]) -> None:
    store, built = crossbuilt("h200")
    said = _aot(store, "show", built.ref.key.hex)
    assert "cubins of sm_90" in said.stdout
    assert "no quality certificate: built without its GPU" in said.stdout
    assert "golden outputs: of the eager model" in said.stdout
    row = json.loads(_aot(store, "show", built.ref.key.hex, "--json").stdout)
    assert row["measured"]["cubins"]["text_encoder-0.so"].keys() == {"sm_90"}


def test_an_artifact_for_a_gpu_is_refused_here_with_the_differing_fields(crossbuilt: Callable[[str], Artifact]) -> None:
    store, built = crossbuilt("h200")
    here = _aot(store, "check", built.ref.key.hex)
    assert (here.returncode, "device: built for cuda, here cpu: blocking" in here.stderr) == (10, True)
    other = _aot(store, "check", built.ref.key.hex, "--gpu", "l40s")
    assert other.returncode == 10
    assert "sku: built for NVIDIA H200, here NVIDIA L40S" in other.stderr
    assert "arch: built for sm_90, here sm_89" in other.stderr
    sister = _aot(store, "check", built.ref.key.hex, "--gpu", "h100-sxm")
    assert (sister.returncode, "--allow-other-sku" in sister.stderr) == (10, True)
    assert _aot(store, "check", built.ref.key.hex, "--gpu", "h100-sxm", "--allow-other-sku").returncode == 0
    fits = _aot(store, "check", built.ref.key.hex, "--gpu", "h200")
    assert (fits.returncode, fits.stdout.endswith(": fits h200\n")) == (0, True)


def _aot(store: LocalStore, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "AOT_HOME": str(store.root)}
    return subprocess.run([sys.executable, "-m", "aot.cli.app", *words], capture_output=True, text=True, env=environ)


def test_another_sku_of_the_architecture_is_served_only_where_the_user_allows_it(crossbuilt: Callable[[str], Artifact]) -> None:
    _, built = crossbuilt("h200")
    key = Key(built.manifest.key)
    facts = {"text_encoder": key.of_component("text_encoder")}
    wish = of_wish(Options(), Target.named("h100-sxm"))
    refused = judge(key, modules=facts, wish=wish)
    assert isinstance(refused, Rejected)
    assert refused.differences == (("target.sku", "NVIDIA H200", "NVIDIA H100 80GB HBM3"),)
    assert "allow=['other-sku'] would serve it" in str(refused)
    taken = judge(key, modules=facts, wish=wish, allow={Allow.SKU})
    assert not isinstance(taken, Rejected)
    assert [one.field for one in taken.degraded] == ["sku"]
    assert isinstance(judge(key, modules=facts, wish=of_wish(Options(), Target.named("l40s")), allow=set(Allow)), Rejected)


def _request(mode: str = "", option: tuple[str, ...] = (), **given: Any) -> Any:
    options = parse_options(mode, "preserve", list(option), dynamic=False)
    asked = {"variant": "tiny", "gpu": "h200", "shapes": [], "options": options, "mode_given": bool(mode), "here": False}
    return parse("pixart-alpha", **{**asked, **given})[1]


def test_without_a_mode_an_absent_gpu_gets_the_default_words_without_those_that_time_kernels() -> None:
    request = _request()
    assert (request.simulate, request.untuned, request.cache_layer, request.options.mode.title) == (True, True, False, "O2")
    assert request.inductor == {}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"mode": "O2"}, r"max-optimize, max-autotune: .*no NVIDIA H200 here"),
        ({"mode": "cache-all", "option": ("inductor.coordinate_descent_tuning=true",)}, "coordinate_descent_tuning"),
        ({"option": ("inductor.max_autotune=true",)}, "max_autotune"),
        ({"mode": "freezing"}, "'freezing' without the GPU"),
        ({"also": ["sm_80"]}, "--also sm_80: its code is made from that of sm_90"),
    ],
)
def test_what_needs_the_gpu_itself_is_refused_with_the_reason(given: dict[str, Any], names: str) -> None:
    with pytest.raises(Unsupported, match=names):
        _request(**given)


def test_the_nearest_mode_that_works_is_named_and_untuned_takes_the_default_choices() -> None:
    with pytest.raises(Unsupported) as caught:
        _request(mode="O3")
    assert "--mode low-precision:cache-all" in caught.value.remedy
    assert "--untuned" in caught.value.remedy
    assert _request(mode="O3", untuned=True).inductor == {"use_fast_math": True}
    assert _request(mode="low-precision:cache-all").inductor == {"use_fast_math": True}
    with pytest.raises(BadInput, match="sm_91"):
        _request(also=["sm_91"])


def test_bench_says_that_there_is_nothing_to_measure(tmp_path: Any) -> None:
    said = _aot(LocalStore(tmp_path / "home"), "bench", "pixart-alpha", "--gpu", "h200")
    assert (said.returncode, "there is no NVIDIA H200 here to measure" in said.stderr) == (2, True)
