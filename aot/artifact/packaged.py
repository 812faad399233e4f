"""Packaged: an AOTInductor package of anybody's, and what it is for, read from its bytes. Nothing of it is mapped or run.

A package is a zip of a library, the sources that it was compiled from, what is said of them, and a GPU's machine code. Its maker's
torch is in none of them by name; the library has pieces of torch's own headers, which tell the versions apart. Read so on packages of
torch 2.11.0, 2.14.1 and 2.15.0, and in the headers of 2.8.0 to 2.15.0.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Self

from aot.artifact.cubin import architectures
from aot.artifact.elf import Elf
from aot.artifact.kinds import MAX_PACKAGE, NO_SOURCE
from aot.artifact.operators import beside, foreign
from aot.artifact.wrapper import Input, Wrapper
from aot.cache_store.errors import Malformed
from aot.model.signature import TensorSpec

_MAX_UNPACKED = 1 << 30  # bytes
_FOLDER = "data/aotinductor"
_LIBRARY, _SOURCE, _ABOUT, _CUBIN = (".wrapper.so", ".so"), (".wrapper.cpp", ".cpp"), "_metadata.json", ".cubin"
# from which minor version of torch on its headers put this into every library
_SINCE = (
    ("2.15", b"AOTInductorModelContainerSetUseStreamAffinity"),
    ("2.14", b"AOTInductorModelContainerCreateWithExternalConstants"),
    ("2.13", b"AOTInductorGetLastError"),
    ("2.11 or 2.12", b"was compiled for a non-CPU device"),
    ("2.10", b"AOTInductorModelContainerGetConstantsBlobSize"),
)
_EARLIER = "before 2.10"
_ENTRY = "AOTInductorModelContainerRun"  # what every library of the kind has


@dataclass(frozen=True, slots=True)
class Packaged:
    """What one package is for.

    `torch`: the minor versions that may have made it, `2.11 or 2.12`. `isa`: the vector instructions that its CPU code was compiled with,
    in Inductor's words. `architectures`: of its GPU code. `needs`: what it asks of torch by name. `weights`: by their names in the module.
    `operators`: those of others that it calls, by namespace.
    """

    device: str
    torch: str
    machine: str
    isa: tuple[str, ...]
    architectures: tuple[str, ...]
    inputs: tuple[Input, ...]
    weights: tuple[tuple[str, TensorSpec], ...]
    call: Any  # torch's own words for the structure of a call, as JSON
    returns: Any
    needs: frozenset[str]
    operators: dict[str, tuple[str, ...]]
    files: dict[str, bytes] = field(repr=False)  # what is needed to run it, by name
    library: str = ""

    @classmethod
    def read(cls, package: bytes) -> Self:
        """Raises Malformed, in words, for what is no package, is damaged, or does not say what it is for."""
        files = _members(package)
        libraries = [name for name in files if name.endswith(_LIBRARY[0])] or [name for name in files if name.endswith(_LIBRARY[1])]
        if len(libraries) != 1:
            raise Malformed(f"it holds {len(libraries)} libraries of a graph; one is read.")
        (library,) = libraries
        stem = library.removesuffix(_LIBRARY[0]).removesuffix(_LIBRARY[1])
        source = files.get(stem + _SOURCE[0]) or files.get(stem + _SOURCE[1])
        if source is None or source == NO_SOURCE:
            raise Malformed("it has no source beside its library, and so does not say which weights and inputs it takes.")
        elf, code = Elf.of(files[library]), files[library]
        if _ENTRY not in elf.exports:
            raise Malformed("its library is no graph of AOTInductor's.")
        wrapper = Wrapper.parse(source.decode(errors="replace"))
        if unknown := [name for name, _ in wrapper.weights if name.encode() not in code]:
            raise Malformed(f"its source is of another library, which knows no {unknown[0]}.")
        about = _about(files, stem)
        cubins = Counter[str]()
        for name, data in files.items():
            if name == library or name.endswith(_CUBIN):
                cubins.update(architectures(data))
        kept = {name: data for name, data in files.items() if name == library or name.endswith((_CUBIN, ".json"))}
        return cls(
            device=str(about.get("AOTI_DEVICE_KEY", "") or wrapper.device),
            torch=next((version for version, mark in _SINCE if mark in code), _EARLIER),
            machine=elf.machine,
            isa=tuple(str(about.get("AOTI_CPU_ISA", "")).split()),
            architectures=tuple(sorted(cubins)),
            inputs=wrapper.inputs,
            weights=wrapper.weights,
            call=wrapper.call,
            returns=wrapper.returns,
            needs=elf.needs,
            operators=_operators_of(files, library),
            files=kept,
            library=library,
        )


def _members(package: bytes) -> dict[str, bytes]:
    """The files of its model by their names, every checksum compared."""
    if len(package) > MAX_PACKAGE:
        raise Malformed(f"it is longer than {MAX_PACKAGE >> 20} MiB.")
    try:
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            listed = archive.infolist()
            if sum(member.file_size for member in listed) > _MAX_UNPACKED:
                raise Malformed(f"it unpacks to more than {_MAX_UNPACKED >> 30} GiB.")
            found = [(PurePosixPath(member.filename), archive.read(member)) for member in listed if not member.is_dir()]
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Malformed(f"it is damaged, or no package: {error}.") from error
    except Exception as error:  # zlib.error and what else a decompressor says of damaged bytes
        raise Malformed(f"it is damaged: {type(error).__name__}: {error}.") from error
    models = {str(path.parent) for path, _ in found if _FOLDER in str(path)}
    if len(models) != 1:
        raise Malformed(f"it holds {len(models)} graphs of AOTInductor's; one is read.")
    named = [(path.name, data) for path, data in found if str(path.parent) in models]
    if len({name for name, _ in named}) != len(named):
        raise Malformed("two of its files have one name.")
    if unsafe := [name for name, _ in named if not re.fullmatch(r"[A-Za-z0-9._+=@-]+", name)]:
        raise Malformed(f"it has a file of the name {unsafe[0]!r}.")
    return dict(named)


def _operators_of(files: dict[str, bytes], library: str) -> dict[str, tuple[str, ...]]:
    """Raises Malformed."""
    nodes = files.get(beside(PurePosixPath(library)).name)
    try:
        return foreign([nodes] if nodes else [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("it does not say in JSON which operators it calls.") from error


def _about(files: dict[str, bytes], stem: str) -> dict[str, Any]:
    """What the compiler said of the library; empty where it said nothing."""
    for name in (f"{stem}.wrapper{_ABOUT}", f"{stem}{_ABOUT}"):
        if name in files:
            try:
                found = json.loads(files[name])
            except (ValueError, RecursionError) as error:
                raise Malformed(f"its {name} is no JSON.") from error
            if isinstance(found, dict):
                return found
    return {}
