"""The C++ compiler of a build: what it links, whatever it finds of its own library."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from aot.compiler.toolchain import write_compiler
from aot.errors import BadEnvironment
from aot.machine.sku import CPU


def _image(folder: Path, *, libraries: dict[str, str]) -> dict[str, str]:
    """The environment of an image whose compiler finds these of its C++ libraries, by the name asked, and no others."""
    real = shutil.which("g++")
    cases = "\n".join(f"  -print-file-name={name}) echo {found}; exit;;" for name, found in libraries.items())
    script = folder / "bin" / "g++"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\n  -print-file-name=*) echo "${{1#*=}}"; exit;;\nesac\nexec {real} "$@"\n')
    script.chmod(0o700)
    return {**os.environ, "CXX": str(script)}


def _real(name: str) -> str:
    return subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def test_a_compiler_without_a_shared_library_of_its_own_is_shown_the_systems(tmp_path: Path) -> None:
    environ = _image(tmp_path, libraries={"libstdc++.so.6": _real("libstdc++.so.6")})
    compiler = write_compiler(tmp_path / "tools", CPU, environ)
    (link,) = tmp_path.glob("tools/runtime-*/libstdc++.so")
    assert link.resolve() == Path(_real("libstdc++.so.6")).resolve()
    source = tmp_path / "graph.cpp"
    source.write_text('#include <string>\nextern "C" int f(const char* s) { return std::string(s).size(); }\n')
    command = [compiler, "-shared", "-fPIC", source, "-o", tmp_path / "graph.so", "-v"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert f"-L{link.parent}" in said.stderr
    needed = subprocess.run(["readelf", "-d", tmp_path / "graph.so"], capture_output=True, text=True, check=True).stdout
    assert "[libstdc++.so.6]" in needed
    assert write_compiler(tmp_path / "tools", CPU, environ) == compiler


def test_a_compiler_that_has_one_is_left_alone(tmp_path: Path) -> None:
    write_compiler(tmp_path / "tools", CPU, dict(os.environ))
    assert not list(tmp_path.glob("tools/runtime-*"))


def test_without_any_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadEnvironment, match=r"finds no libstdc\+\+\.so: a graph would") as caught:
        write_compiler(tmp_path / "tools", CPU, _image(tmp_path, libraries={}))
    assert "apt-get install" in caught.value.remedy


def test_no_library_asks_for_a_stack_that_can_be_executed(tmp_path: Path) -> None:
    """Also of objects that do not say, as those with cubins in them: glibc 2.41 would not open it."""
    compiler = write_compiler(tmp_path / "toolchain", "h200", os.environ)
    (tmp_path / "cubin").write_bytes(b"code")
    (tmp_path / "graph.cpp").write_text("int graph() { return 0; }\n")
    subprocess.run(["ld", "-r", "-b", "binary", "-o", "cubin.o", "cubin"], cwd=tmp_path, check=True)
    subprocess.run([compiler, "-shared", "-fPIC", "graph.cpp", "cubin.o", "-o", "graph.so"], cwd=tmp_path, check=True)
    assert not _executable_stack((tmp_path / "graph.so").read_bytes())
    (tmp_path / "header.h").write_text("int graph();\n")
    subprocess.run([compiler, "-x", "c++-header", "header.h", "-o", "header.h.gch"], cwd=tmp_path, check=True)  # as Inductor does
    subprocess.run([compiler, "header.h", "-o", "plain.h.gch"], cwd=tmp_path, check=True)
    subprocess.run(["g++", "-shared", "-fPIC", "graph.cpp", "cubin.o", "-o", "plain.so"], cwd=tmp_path, check=True)
    assert _executable_stack((tmp_path / "plain.so").read_bytes())


def _executable_stack(library: bytes) -> bool:
    """The flag X of the program header PT_GNU_STACK (64 bits, little-endian)."""
    start, size, count = (struct.unpack_from(form, library, place)[0] for form, place in (("<Q", 32), ("<H", 54), ("<H", 56)))
    headers = [struct.unpack_from("<II", library, start + number * size) for number in range(count)]
    return any(flags & 1 for kind, flags in headers if kind == 0x6474E551)
