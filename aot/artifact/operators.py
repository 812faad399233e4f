"""Operators: those that a graph calls and torch does not have, and the file of this process that registered them.

Imports torch only to look at the process: who pulls and verifies reads names of kernels without it.
"""

from __future__ import annotations

import inspect
import json
import mmap
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TypeVar

# what torch itself registers, and what its own compiler leaves to it; read in torch 2.14.1
_TORCHS = {
    *("aten", "prim", "prims", "inductor", "quantized", "quantized_decomposed", "_quantized", "mkldnn", "mkl", "onednn", "xnnpack"),
    *("profiler", "c10d", "_c10d_functional", "rngprims", "static_runtime", "sparse", "symm_mem", "streams", "export", "higher_order"),
}
_REGISTERED = re.compile(r"^debug: registered at (.+):\d+$", re.MULTILINE)
_MAPS = Path("/proc/self/maps")
_CACHE = ("/snapshots/", "/blobs/")  # below a repository in the Hub's cache


P = TypeVar("P", bound=PurePath)


def beside(library: P) -> P:
    """Where torch's runner looks for the operators that a library leaves to torch itself, and to others; most leave none."""
    return library.with_suffix(".json")


def foreign(nodes: Iterable[bytes]) -> dict[str, tuple[str, ...]]:
    """By namespace, the operators of others in what lies beside graphs (`beside`)."""
    found: dict[str, set[str]] = defaultdict(set)
    for raw in nodes:
        for node in json.loads(raw)["nodes"]:
            namespace, _, operator = node["node"]["target"].partition("::")
            if namespace not in _TORCHS:
                found[namespace].add(operator.partition(".")[0])
    return {namespace: tuple(sorted(operators)) for namespace, operators in sorted(found.items())}


def are_here(namespace: str, operators: Iterable[str]) -> bool:
    """Whether all are registered in this process."""
    import torch

    return all(torch._C._jit_get_schemas_for_operator(f"{namespace}::{operator}") for operator in operators)


def registrar(namespace: str, operators: tuple[str, ...]) -> Path | None:
    """The library or the Python file of this process that defines them all, by the name under which it was loaded; None where that is
    not known, or they are of several.

    The dispatcher tells the line of source that registered an operator. Python's is a file of this process; of C++ the same words are
    in the library, beside the namespace and the operators. `_dispatch_dump` and OPDEFS are private, checked on torch 2.11 to 2.15.
    """
    sources: dict[str, list[str]] = defaultdict(list)
    for operator in operators:
        sources[_source(f"{namespace}::{operator}")].append(operator)
    found = {_loaded(source, namespace, those) for source, those in sources.items()}
    return found.pop() if len(found) == 1 else None


def _source(name: str) -> str:
    """The file of the source that registered an operator, as the dispatcher tells, or who asked torch to; empty where that is not known."""
    import torch

    for schema in torch._C._jit_get_schemas_for_operator(name):  # some have named overloads alone
        dump = torch._C._dispatch_dump(f"{name}.{schema.overload_name}".rstrip("."))
        if told := _REGISTERED.search(dump):
            return str(_defined(name) or "") if told[1].endswith(".py") and _is_torchs(told[1]) else told[1]
    return ""


def _loaded(source: str, namespace: str, operators: list[str]) -> Path | None:
    """The file of this process that a source became: of Python itself, of C++ the library that has its words."""
    if not source or source.endswith(".py"):
        return Path(source) if source else None
    words = [source.encode() + b"\0", namespace.encode() + b"\0", *(operator.encode() for operator in operators)]
    return next((library for library in libraries() if _holds(library, words)), None)


def _defined(name: str) -> Path | None:
    """The file of what was registered by way of torch.library.custom_op, or of torch.library.define."""
    from torch._library.custom_ops import OPDEFS

    definition = OPDEFS.get(name)
    if definition is None:
        return _defining(name)
    code = getattr(inspect.unwrap(definition._init_fn), "__code__", None)  # a decorator's own code says nothing of it
    return Path(code.co_filename) if code and not _is_torchs(code.co_filename) else None


def _is_torchs(file: str) -> bool:
    import torch

    return Path(file).is_relative_to(Path(torch.__file__).parent)


def _defining(name: str) -> Path | None:
    """The file of a loaded module that asks torch by name to define an operator; None where it is not one alone."""
    defines = re.compile(rb"\bdefine\(\s*[\"']%b[\"']" % re.escape(name.encode()))
    files = {str(file) for module in [*sys.modules.values()] if str(file := getattr(module, "__file__", None)).endswith(".py")}
    found = [file for file in sorted(files) if _says(Path(file), defines)]
    return Path(found[0]) if len(found) == 1 else None


def _says(file: Path, pattern: re.Pattern[bytes]) -> bool:
    with suppress(OSError):
        return pattern.search(file.read_bytes()) is not None
    return False


def libraries() -> Iterator[Path]:
    """Those that this process has mapped, but for torch's own: by the names under which Python opened them, which may be links; those in
    the Hub's cache first, for a kernel is looked for at every load, and a process has hundreds of others."""
    import torch

    named = [str(name) for module in [*sys.modules.values()] if str(name := getattr(module, "__file__", None)).endswith(".so")]
    seen = set[Path]()
    every = [*sorted(named), *sorted(torch.ops.loaded_libraries), *_mapped()]
    for name in sorted(every, key=lambda name: not any(folder in name for folder in _CACHE)):
        path, resolved = Path(name), Path(name).resolve()
        if resolved not in seen and not _is_torchs(name) and path.is_file():
            seen.add(resolved)
            yield path


def _mapped() -> list[str]:
    """Linux tells of those too that others opened."""
    with suppress(OSError):
        return sorted({line.split(maxsplit=5)[5] for line in _MAPS.read_text().splitlines() if " r-xp " in line and "/" in line})
    return []


def _holds(library: Path, words: list[bytes]) -> bool:
    with suppress(OSError, ValueError), library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        return all(code.find(word) >= 0 for word in words)
    return False
