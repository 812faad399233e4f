"""Toolkit: the parts of a CUDA toolkit that a build for a GPU needs: headers, and something to link in place of the driver."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aot.cache_store.digest import Digest
from aot.compiler.toolchain import find_compiler
from aot.errors import BadEnvironment

# what generated code includes, and the package that has it where torch's own packages do not
_HEADERS = {
    "cuda_runtime_api.h": "nvidia-cuda-runtime",
    "cublas_v2.h": "nvidia-cublas",
    "crt/host_defines.h": "triton",
    "nv/target": "nvidia-cuda-cccl",
    "cuda.h": "triton",
}
_DRIVER_CALL = re.compile(r"\bcu[A-Z]\w*")  # a function of the driver, in its header; types are named CU…


@dataclass(frozen=True, slots=True)
class Toolkit:
    """Where a toolkit is, and further folders of headers beside its own."""

    home: Path
    includes: tuple[Path, ...]

    @property
    def has_nvcc(self) -> bool:
        """Whether the assembler is there too."""
        return (self.home / "bin" / "nvcc").exists()

    def header(self, name: str) -> Path | None:
        """Where a header is; None if it is in none of the folders."""
        return next((folder / name for folder in (self.home / "include", *self.includes) if (folder / name).exists()), None)

    def missing(self) -> list[str]:
        """The headers that are in none of the folders."""
        return [header for header in _HEADERS if self.header(header) is None]


def toolkit_environment(
    directory: Path, environ: Mapping[str, str], *, path: Sequence[str] = tuple(sys.path), nvcc: bool = False
) -> dict[str, str]:
    """The variables by which torch and the compiler find a toolkit, and a stub of the driver written below `directory`.

    `path`: where the packages of the building Python are. `nvcc`: whether the assembler is needed too, to put several
    architectures into one artifact. Raises BadEnvironment.
    """
    toolkit = find_toolkit(environ, path, nvcc=nvcc)
    header = toolkit.header("cuda.h")
    assert header is not None  # none is missing
    stub = _write_stub(directory, sorted(set(_DRIVER_CALL.findall(header.read_text(errors="replace")))), environ)
    return {
        "CUDA_HOME": str(toolkit.home),
        "CPATH": _joined(toolkit.includes, environ.get("CPATH")),
        "LIBRARY_PATH": _joined([stub], environ.get("LIBRARY_PATH")),
    }


def find_toolkit(environ: Mapping[str, str], path: Sequence[str] = tuple(sys.path), *, nvcc: bool = False) -> Toolkit:
    """CUDA_HOME or CUDA_PATH if set; else the packages that torch itself was installed with; else nvcc's, and the usual place.

    torch's packages come first because they are of the very version that torch was built with. Headers that a place lacks are
    looked for in the packages. With `nvcc`, only a place that has it will do. Raises BadEnvironment naming what is missing.
    """
    asked = [Path(environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    packages, compiler = _packages(path), shutil.which("nvcc", path=environ.get("PATH"))
    usual = [*packages, *([Path(compiler).resolve().parents[1]] if compiler else []), Path("/usr/local/cuda")]
    beside = (_triton_headers(path), *(place / "include" for place in packages))
    found = [Toolkit(place, beside) for place in (asked or usual) if (place / "include").is_dir()]
    for toolkit in found:
        if not toolkit.missing() and (toolkit.has_nvcc or not nvcc):
            return toolkit
    if not found:
        looked = ", ".join(map(str, asked or usual))
        raise BadEnvironment(f"no CUDA toolkit in {looked}.", remedy="pip install nvidia-cuda-runtime, or set CUDA_HOME to one.")
    missing = found[0].missing()
    if not missing:
        raise BadEnvironment(
            f"--also needs nvcc, and the CUDA toolkit at {found[0].home} has none.",
            remedy="pip install nvidia-cuda-nvcc, or set CUDA_HOME to a full toolkit.",
        )
    packages_for = " ".join(_HEADERS[header] for header in missing)
    raise BadEnvironment(
        f"the CUDA toolkit at {found[0].home} lacks {', '.join(missing)}.",
        remedy=f"pip install {packages_for}, of the CUDA version that torch has; or set CUDA_HOME to a full toolkit.",
    )


def _packages(path: Sequence[str]) -> list[Path]:
    """Where the `nvidia-*` packages put a toolkit: one folder for all since CUDA 13, before that one each."""
    roots = [Path(entry) / "nvidia" for entry in path if entry]
    one_for_all = [found for root in roots for found in sorted(root.glob("cu[0-9]*"), reverse=True)]
    return one_for_all or [found.parent for root in roots for found in sorted(root.glob("cuda_*/include"), reverse=True)]


def _triton_headers(path: Sequence[str]) -> Path:
    for entry in path:
        headers = Path(entry) / "triton" / "backends" / "nvidia" / "include"
        if entry and headers.exists():
            return headers
    raise BadEnvironment("triton is not installed, and building for a GPU needs it.", remedy="pip install triton.")


def _write_stub(directory: Path, functions: Sequence[str], environ: Mapping[str, str]) -> Path:
    """A folder with a library of the driver's name and functions: the linker wants one, and the real one comes with a driver.

    Many compilers link `--as-needed`: without the functions, what was compiled would not name the driver among what it needs, and
    no process could open it.
    """
    source = "".join(f"int {name}(void) {{ return 1; }}\n" for name in functions)
    stub = directory / f"driver-{Digest.of(source.encode()).short}" / "libcuda.so"
    if not stub.exists():
        stub.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = stub.with_name(f"libcuda.so.{os.getpid()}")
        command = [str(find_compiler(environ)), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(temporary), "-x", "c", "-"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, input=source)
        if done.returncode:
            raise BadEnvironment(f"the C++ compiler cannot link a library: {done.stderr.strip()[:200]}", remedy="repair g++, or set CXX.")
        temporary.replace(stub)
    return stub.parent


def _joined(first: Sequence[Path], rest: str | None) -> str:
    return os.pathsep.join([*map(str, first), *([rest] if rest else [])])
