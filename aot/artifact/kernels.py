"""Kernels: operators of others that a graph calls: whose they are, and having the very same in this process before it is opened.

An operator is called through torch's dispatcher, by name: the library or package that registers it must be there. One of a repository
of the Hub (`kernels.get_kernel`, which diffusers' attention backends use) is named by repository, revision and digest, and fetched;
one of an installed distribution by its version, and imported; any other must have been registered by the program itself.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

import torch

from aot.cache_store.digest import Digest
from aot.cache_store.errors import CodedError, Corrupt, Malformed, Missing, Unreachable, named
from aot.errors import LoadFailed, first_line

_PREFIX = "kernel "  # of the producer's parts that name one, by namespace
# what torch itself registers, and what its own compiler leaves to it; read in torch 2.14.1
_TORCHS = {
    *("aten", "prim", "prims", "inductor", "quantized", "quantized_decomposed", "_quantized", "mkldnn", "mkl", "onednn", "xnnpack"),
    *("profiler", "c10d", "_c10d_functional", "rngprims", "static_runtime", "sparse", "symm_mem", "streams", "export", "higher_order"),
}
_HUB = re.compile(r"(?:models|kernels)--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})/(.+)")
_FROM_HUB = re.compile(r"hf://([^/@\s]+/[^/@\s]+)@([0-9a-f]{40})/(\S+) (sha256:[0-9a-f]{64}) for (\S+)")
_INSTALLED = re.compile(r"(\S+)==(\S+) import (\S+) for (\S+)")
_OF_PROGRAM = re.compile(r"the program for (\S+)")


@dataclass(frozen=True, slots=True)
class Kernel:
    """The operators that graphs call of one namespace, and where they come from; `parse(namespace, str(k)) == k`."""

    namespace: str
    operators: tuple[str, ...]
    repository: str = ""
    revision: str = ""
    path: str = ""
    digest: Digest | None = None
    distribution: str = ""
    version: str = ""
    module: str = ""  # what is imported

    def __str__(self) -> str:
        operators = ",".join(self.operators)
        if self.digest:
            return f"hf://{self.repository}@{self.revision}/{self.path} {self.digest} for {operators}"
        return (
            f"{self.distribution}=={self.version} import {self.module} for {operators}" if self.module else f"the program for {operators}"
        )

    @classmethod
    def parse(cls, namespace: str, text: str) -> Self:
        """Raises Malformed."""
        if found := _FROM_HUB.fullmatch(text):
            repository, revision, path, digest, operators = found.groups()
            if not {".", "..", ""} & {*path.split("/")}:
                return cls(namespace, tuple(operators.split(",")), repository, revision, path, Digest.parse(digest))
        if found := _INSTALLED.fullmatch(text):
            distribution, version, module, operators = found.groups()
            return cls(namespace, tuple(operators.split(",")), distribution=distribution, version=version, module=module)
        if found := _OF_PROGRAM.fullmatch(text):
            return cls(namespace, tuple(found[1].split(",")))
        raise Malformed(f"kernel {namespace!r} is named as {text!r}, which says of no origin.")

    @property
    def is_here(self) -> bool:
        """Whether all its operators are registered in this process."""
        return all(torch._C._jit_get_schemas_for_operator(f"{self.namespace}::{operator}") for operator in self.operators)

    def load(self) -> None:
        """Have its operators in this process. Raises LoadFailed, Corrupt, Missing, Unreachable, before anything of it is mapped."""
        if self.module:
            self._check_version()
        if self.is_here:
            self._check_loaded()
        elif self.digest:
            path = self.fetch()
            try:
                torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
            except OSError as error:
                raise LoadFailed(f"kernel {self}: {first_line(error)}.", remedy="it is for another machine or torch than this.") from error
        elif self.module:
            self._import()
        if not self.is_here:
            raise LoadFailed(
                f"its graphs call {self.namespace}::{self.operators[0]}, which nothing has registered in this process.",
                remedy="load what registers it before the artifact, as the program that built it did.",
            )

    def fetch(self, *, anew: bool = True) -> Path:
        """Its file in the Hub's cache, fetched unless it is there, with the promised digest. Without `anew` it is asked of nobody.

        Raises Corrupt, Missing, Denied, Unreachable.
        """
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

        from aot.cache_store.hub_errors import hub_errors

        where = f"hf://{self.repository}@{self.revision}"
        here = try_to_load_from_cache(self.repository, self.path, revision=self.revision)
        if isinstance(here, str) and self._is_sound(Path(here)):
            return Path(here)
        if not anew or constants.HF_HUB_OFFLINE:
            if isinstance(here, str):
                raise Corrupt(f"kernel {where}/{self.path} is not the bytes that were promised.", culprit="")
            raise Missing(f"kernel {where}/{self.path} is not on this machine.", remedy="`aot pull` fetches it.")
        try:
            with hub_errors(where):
                name = hf_hub_download(self.repository, self.path, revision=self.revision, force_download=True)
        except CodedError:
            raise
        except Exception as error:  # of the client, of what is beneath it, of this machine's disk: a kernel costs a miss, never a process
            raise Unreachable(
                f"kernel {where}/{self.path} cannot be fetched: {first_line(error)}.", remedy="see that it can be."
            ) from error
        if not self._is_sound(Path(name)):
            raise Corrupt(f"kernel {where}/{self.path} is not the bytes that were promised.", culprit="")
        return Path(name)

    def _is_sound(self, file: Path) -> bool:
        with named(file), file.open("rb") as opened:
            return Digest.of_stream(opened) == self.digest

    def _check_version(self) -> None:
        try:
            here = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            here = "none"
        if here != self.version:
            raise LoadFailed(
                f"its graphs call operators of {self.distribution} {self.version}, and here is {here}.",
                remedy=f"pip install {self.distribution}=={self.version}",
            )

    def _import(self) -> None:
        try:
            importlib.import_module(self.module)
        except Exception as error:
            raise LoadFailed(f"{self.module} of {self.distribution} cannot be imported: {first_line(error)}.") from error

    def _check_loaded(self) -> None:
        """Raises LoadFailed where what is registered is of another file than the one that was built with."""
        if self.digest is None or (found := library_of(self.namespace, self.operators)) is None:
            return
        if not self._is_sound(found):
            built = f"{self.repository}@{self.revision[:12]}"
            raise LoadFailed(
                f"this process has {self.namespace} of {found}, and the artifact was built with {built}.",
                remedy="load that revision, or build the artifact again with this one.",
            )


def kernels_of(producer: Mapping[str, str]) -> list[Kernel]:
    """Those that an artifact says its graphs call. Raises Malformed."""
    return [Kernel.parse(name.removeprefix(_PREFIX), text) for name, text in sorted(producer.items()) if name.startswith(_PREFIX)]


def described(nodes: Iterable[bytes]) -> dict[str, str]:
    """The producer's parts for graphs whose operators these say (`beside`), and where each comes from in this process."""
    found: dict[str, set[str]] = defaultdict(set)
    for raw in nodes:
        for node in json.loads(raw)["nodes"]:
            namespace, _, operator = node["node"]["target"].partition("::")
            if namespace not in _TORCHS:
                found[namespace].add(operator.partition(".")[0])
    return {f"{_PREFIX}{namespace}": str(_origin(namespace, tuple(sorted(operators)))) for namespace, operators in sorted(found.items())}


def _origin(namespace: str, operators: tuple[str, ...]) -> Kernel:
    """Where this process has them from."""
    path = library_of(namespace, operators)
    if path is not None and (found := _in_hub_cache(path)):
        with path.open("rb") as file:
            return Kernel(namespace, operators, *found, Digest.of_stream(file))
    if (module := _module_of(path) if path else _defined_in(namespace, operators[0])) and (distribution := _distribution_of(module)):
        return Kernel(namespace, operators, distribution=distribution, version=metadata.version(distribution), module=module)
    return Kernel(namespace, operators)


def _in_hub_cache(library: Path) -> tuple[str, str, str] | None:
    """Of a file in the Hub's cache: repository, revision and path there. torch keeps the name that links lead to, which says neither."""
    for folder in library.parents:
        if folder.name.startswith(("models--", "kernels--")):
            snapshots = folder / "snapshots"
            same = [path for path in snapshots.rglob("*.so") if path.resolve() == library.resolve()]
            if found := same and _HUB.search(str(max(same, key=lambda path: path.lstat().st_mtime))):
                organisation, name, revision, inside = found.groups()
                return f"{organisation}/{name}", revision, inside
    return None


def library_of(namespace: str, operators: tuple[str, ...]) -> Path | None:
    """The library of this process that registers them; None where Python does. As it was named when it was loaded."""
    extensions = {file for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None)) and str(file).endswith(".so")}
    inside = str(Path(torch.__file__).parent)
    words = [name.encode() for name in (namespace, *operators)]
    for name in sorted({*torch.ops.loaded_libraries, *extensions}):
        if not str(name).startswith(inside) and Path(name).is_file():
            code = Path(name).read_bytes()
            if all(word in code for word in words):
                return Path(name)
    return None


def _module_of(library: Path) -> str | None:
    """The top-level package that an installed library is in."""
    for where in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if library.is_relative_to(where):
            return library.relative_to(where).parts[0].partition(".")[0]
    return None


def _defined_in(namespace: str, operator: str) -> str | None:
    """The top-level package of an operator that Python defines (torch.library.custom_op). Private name, checked on torch 2.14.1."""
    from torch._library.custom_ops import OPDEFS

    found = OPDEFS.get(f"{namespace}::{operator}")
    return found._init_fn.__module__.partition(".")[0] if found else None


def _distribution_of(module: str) -> str | None:
    return next(iter(metadata.packages_distributions().get(module, ())), None)
