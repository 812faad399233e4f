"""Finding the parts of a CUDA toolkit."""

import os
import subprocess
from pathlib import Path

import pytest

from aot.compiler.toolkit import find_toolkit, toolkit_environment
from aot.errors import BadEnvironment

HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "nv/target")


def _tree(root: Path, *headers: str) -> Path:
    for header in headers:
        (root / header).parent.mkdir(parents=True, exist_ok=True)
        (root / header).touch()
    return root


def _packages(root: Path, *headers: str) -> str:
    """A folder of packages: triton's headers, and these of the toolkit's."""
    triton = _tree(root / "triton" / "backends" / "nvidia" / "include", "crt/host_defines.h")
    (triton / "cuda.h").write_text("CUresult CUDAAPI cuLaunchKernel(CUfunction f);\n#define cuMemAlloc cuMemAlloc_v2\n")
    _tree(root / "nvidia" / "cu13" / "include", *headers)
    return str(root)


def test_the_packages_of_torch_are_taken_and_triton_has_the_rest(tmp_path: Path) -> None:
    path = _packages(tmp_path, *HEADERS)
    assert find_toolkit({}, [path]).home == tmp_path / "nvidia" / "cu13"


def test_what_the_user_names_comes_first_and_lacking_headers_are_looked_for_in_the_packages(tmp_path: Path) -> None:
    path, mine = _packages(tmp_path / "site", *HEADERS), _tree(tmp_path / "mine" / "include", "cuda_runtime_api.h").parent
    for name in ("CUDA_HOME", "CUDA_PATH"):
        assert find_toolkit({name: str(mine)}, [path]).home == mine


def test_what_is_missing_is_named_with_the_package_that_has_it(tmp_path: Path) -> None:
    path = _packages(tmp_path / "site", "cuda_runtime_api.h", "cublas_v2.h")
    with pytest.raises(BadEnvironment, match="lacks nv/target") as caught:
        find_toolkit({"CUDA_HOME": str(tmp_path / "site" / "nvidia" / "cu13")}, [path])
    assert "pip install nvidia-cuda-cccl," in caught.value.remedy


def test_without_any_or_without_triton_the_remedy_is_told(tmp_path: Path) -> None:
    path = _packages(tmp_path / "site", *HEADERS)
    with pytest.raises(BadEnvironment, match="no CUDA toolkit in"):
        find_toolkit({"CUDA_HOME": str(tmp_path / "nowhere")}, [path])
    with pytest.raises(BadEnvironment, match="triton is not installed"):
        find_toolkit({}, [str(tmp_path / "empty")])


def test_the_stub_in_place_of_the_driver_has_the_drivers_name(tmp_path: Path) -> None:
    path = _packages(tmp_path / "site", *HEADERS)
    found = toolkit_environment(tmp_path / "tools", {"PATH": os.environ["PATH"], "CPATH": "/mine"}, path=[path])
    assert found["CPATH"].endswith(f"{os.pathsep}/mine")
    stub = Path(found["LIBRARY_PATH"]) / "libcuda.so"
    said = subprocess.run(["readelf", "-d", stub], capture_output=True, text=True, check=True).stdout
    assert "[libcuda.so.1]" in said
    functions = subprocess.run(["nm", "-D", "--defined-only", stub], capture_output=True, text=True, check=True).stdout
    assert {"cuLaunchKernel", "cuMemAlloc_v2"} <= {line.split()[-1] for line in functions.splitlines()}


def test_several_architectures_need_the_assembler(tmp_path: Path) -> None:
    path = _packages(tmp_path / "site", *HEADERS)
    with pytest.raises(BadEnvironment, match="--also needs nvcc"):
        toolkit_environment(tmp_path / "tools", {"CUDA_HOME": f"{path}/nvidia/cu13"}, path=[path], nvcc=True)
    (tmp_path / "full" / "bin").mkdir(parents=True)
    (tmp_path / "full" / "include").mkdir()
    (tmp_path / "full" / "bin" / "nvcc").touch(mode=0o755)
    environ = {"PATH": str(tmp_path / "full" / "bin")}
    assert find_toolkit(environ, [path]).home == tmp_path / "site" / "nvidia" / "cu13"
    assert find_toolkit(environ, [path], nvcc=True).home == tmp_path / "full"
