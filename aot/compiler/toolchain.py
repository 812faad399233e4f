"""Toolchain: the C++ compiler that a build's graphs are compiled with, and what is taken out of libraries before they ship."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from aot.cache_store.digest import Digest
from aot.environment import INDUCTOR_DIRECTORY
from aot.errors import BadEnvironment
from aot.machine.sku import CPU
from aot.machine.target import cpu_here

# GCC stops inlining when a translation unit grows too much. AOTInductor puts all kernels of a graph into one, and the
# innermost functions (a group norm's Welford step) then stay calls: PixArt's VAE decoder took 1.3 times as long as the same
# kernels compiled one by one. The parameters must hold for the precompiled headers too, so they cannot be set per file; the
# wrapper that only launches the kernels is compiled with -O1, and would take half as long again with them.
_INLINE = "--param inline-unit-growth=1000 --param large-unit-insns=1000000 --param max-inline-insns-auto=100"
# The host of a GPU only launches its kernels; every such host of the last ten years has AVX2
_BESIDE_A_GPU = {"x86_64": "x86-64-v3"}
# No symbol table, no exported template instances: a graph's library is a third of the size and is loaded sooner.
_SMALL = "-s -fvisibility-inlines-hidden"
# In torch 2.11 the objects that hold cubins ask for a stack that can be executed, and a hardened host or glibc 2.41 refuses the library.
# For what links alone: with it, GCC would link the headers that are to be precompiled
_STACK = "-Wl,-z,noexecstack"


def find_compiler(environ: Mapping[str, str]) -> Path:
    """The compiler that Inductor would call. Raises BadEnvironment when there is none."""
    name = environ.get("CXX") or "g++"
    found = shutil.which(name, path=environ.get("PATH"))
    if found is None:
        raise BadEnvironment(
            f"no C++ compiler: {name!r} is not on PATH, and building for a CPU needs one (loading does not).",
            remedy="install g++ (Debian: apt-get install g++), or set CXX to your compiler.",
        )
    return Path(found)


def write_compiler(directory: Path, gpu: str, environ: Mapping[str, str]) -> Path:
    """A script below `directory` that calls the compiler with our flags behind Inductor's, where the last one of a kind wins.

    It is called as the compiler, by which Inductor tells GCC from Clang, and by its own content: Inductor keys the headers it
    precompiles (140 MB each, 19 s of a first build) by what the compiler is called, and all stores are to share them. `-march`
    is the target's level: compiled for whatever this host has beyond it, a graph would end other hosts of its target with an
    illegal instruction.
    """
    compiler = find_compiler(environ)
    level = cpu_here().split("+")[0] if gpu == CPU else _BESIDE_A_GPU.get(platform.machine(), "")
    shared = _shared_runtime(compiler, directory, environ)
    march = [f"-march={level}"] if level.startswith("x86-64-") else []
    flags = " ".join([_SMALL, *march, *([f'-L"{shared}"'] if shared else [])])
    inline = "" if "clang" in compiler.name else _INLINE
    # what a library says of its sources: a build's folder and files have other names each time, and this host's paths are
    # nobody's business
    own = f'"{sysconfig.get_path("purelib")}"=site-packages'
    nameless = ['"${VIRTUAL_ENV:-/}"=environment', own, f'"${{{INDUCTOR_DIRECTORY}:-/}}"=inductor', '"$source"=graph.cpp']
    lines = [
        "#!/bin/sh",
        "source=/",
        'for argument; do case "$argument" in *.cpp) source=$argument;; esac; done',
        f'case " $* " in *" -shared "*) set -- "$@" {_STACK};; esac',
        f'case " $* " in *" -O3 "*) set -- "$@" {inline};; esac',
        f'exec "{compiler}" "$@" {flags} {" ".join(f"-ffile-prefix-map={one}" for one in nameless)}',
    ]
    text = "\n".join(lines) + "\n"
    script = directory / f"{compiler.name}-{Digest.of(text.encode()).short}"
    script.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not script.exists():
        temporary = script.with_name(f"{script.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.chmod(0o700)
        temporary.replace(script)
    return script


def _shared_runtime(compiler: Path, directory: Path, environ: Mapping[str, str]) -> Path | None:
    """A folder with the C++ library by the name that is linked, where the compiler finds it by none: it would link a static one.

    A graph with a C++ library of its own, beside torch's, ends the process that opens it: the two number what a locale has
    differently (seen on an image of Ubuntu 24.04 that had libstdc++.a and libstdc++.so.6, and no libstdc++.so). Raises
    BadEnvironment when there is no shared one.
    """
    if _finds(compiler, "libstdc++.so", environ):
        return None
    found = _finds(compiler, "libstdc++.so.6", environ)
    if found is None:
        raise BadEnvironment(
            f"{compiler} finds no libstdc++.so: a graph would have a C++ library of its own, and end the process that opens it.",
            remedy="install the compiler's C++ library (Debian: apt-get install libstdc++-12-dev libstdc++6, of its version).",
        )
    folder = directory / f"runtime-{Digest.of(str(found).encode()).short}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f"libstdc++.so.{os.getpid()}"
    temporary.symlink_to(found)
    temporary.replace(folder / "libstdc++.so")
    return folder


def _finds(compiler: Path, library: str, environ: Mapping[str, str]) -> Path | None:
    """Where the compiler finds a library; None where it does not, or is not one that can be asked."""
    command = [str(compiler), f"-print-file-name={library}"]
    said = Path(subprocess.run(command, check=False, capture_output=True, text=True, env=dict(environ)).stdout.strip())
    return said.resolve() if said.is_absolute() and said.exists() else None


def strip(directory: Path) -> None:
    """Take the symbol tables out of the libraries below `directory`; leave them where there is no `strip`."""
    tool = shutil.which("strip")
    libraries = [str(path) for path in directory.rglob("*.so")]
    if tool and libraries:
        subprocess.run([tool, "--strip-unneeded", *libraries], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
