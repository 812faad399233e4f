"""Kernels: whose the operators are that a graph calls and torch does not have, and having the very same here before it is opened.

An operator is called through torch's dispatcher, by name: the library or package that registers it must be there. One of a repository
of the Hub (`kernels.get_kernel`, which diffusers' attention backends use) is named by repository, revision and digest, and fetched;
one of an installed distribution by its version, and imported; any other must have been registered by the program itself. Reading which
an artifact needs, and fetching them, imports no torch.
"""

from __future__ import annotations

import importlib
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Self

from aot.artifact.hub_kernel import HubKernel
from aot.artifact.operators import are_here, foreign, registrar
from aot.cache_store.errors import Malformed
from aot.errors import LoadFailed, first_line

_PREFIX = "kernel "  # of the producer's parts that name one, by namespace
_TEXT = re.compile(r"(.+) for (\S+)")
_INSTALLED = re.compile(r"(\S+)==(\S+) import (\S+)")
_OF_PROGRAM = "the program"


@dataclass(frozen=True, slots=True)
class Installed:
    """A distribution, and the module of it that is imported; `parse(str(i)) == i`."""

    distribution: str
    version: str
    module: str

    def __str__(self) -> str:
        return f"{self.distribution}=={self.version} import {self.module}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        return cls(*found.groups()) if (found := _INSTALLED.fullmatch(text)) else None

    @classmethod
    def of(cls, file: Path) -> Self | None:
        """That of a file which is installed; None for any other."""
        for where in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            if not file.is_relative_to(where):
                continue
            inside = file.relative_to(where)
            names = [*inside.parts[:-1], inside.name.partition(".")[0]]
            # a library that the package opened itself is no module: who imports the package has it
            inner = len(names) > 1 and (names[-1] == "__init__" or (file.suffix == ".so" and not _is_imported(".".join(names), file)))
            module = ".".join(names[:-1] if inner else names)
            for name in metadata.packages_distributions().get(names[0], ()):  # several may share a namespace
                if any(inside == Path(one) for one in metadata.files(name) or ()):
                    return cls(name, metadata.version(name), module)
        return None

    def check(self) -> None:
        """Raises LoadFailed for another version than this."""
        try:
            here = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            here = "none"
        if here != self.version:
            raise LoadFailed(
                f"its graphs call operators of {self.distribution} {self.version}, and here is {here}.",
                remedy=f"pip install {self.distribution}=={self.version}",
            )

    def load(self) -> None:
        try:
            importlib.import_module(self.module)
        except Exception as error:
            raise LoadFailed(f"{self.module} of {self.distribution} cannot be imported: {first_line(error)}.") from error


def _is_imported(module: str, file: Path) -> bool:
    return getattr(sys.modules.get(module), "__file__", None) == str(file)


@dataclass(frozen=True, slots=True)
class Kernel:
    """The operators that graphs call of one namespace, and where they come from; `parse(namespace, str(k)) == k`."""

    namespace: str
    operators: tuple[str, ...]
    origin: HubKernel | Installed | None = None  # None: the program itself

    def __str__(self) -> str:
        return f"{self.origin or _OF_PROGRAM} for {','.join(self.operators)}"

    @classmethod
    def parse(cls, namespace: str, text: str) -> Self:
        """Raises Malformed."""
        if found := _TEXT.fullmatch(text):
            origin = HubKernel.parse(found[1]) or Installed.parse(found[1])
            if origin or found[1] == _OF_PROGRAM:
                return cls(namespace, tuple(found[2].split(",")), origin)
        raise Malformed(f"kernel {namespace!r} is named as {text!r}, which says of no origin.")

    @property
    def hub(self) -> HubKernel | None:
        """Where it is of a repository of the Hub."""
        return self.origin if isinstance(self.origin, HubKernel) else None

    def load(self) -> None:
        """Have its operators in this process. Raises LoadFailed, Corrupt, Missing, Unreachable, before anything of it is run."""
        if isinstance(self.origin, Installed):
            self.origin.check()
        if are_here(self.namespace, self.operators):
            self._check_loaded()
        elif self.origin:
            self.origin.load()
        if not are_here(self.namespace, self.operators):
            raise LoadFailed(
                f"its graphs call {self.namespace}::{self.operators[0]}, which nothing has registered in this process.",
                remedy="load what registers it before the artifact, as the program that built it did.",
            )

    def _check_loaded(self) -> None:
        """Raises LoadFailed where what is registered is of another file than the one that was built with."""
        if self.hub is None or (found := registrar(self.namespace, self.operators)) is None or self.hub.is_of(found):
            return
        built = f"{self.hub.repository}@{self.hub.revision[:12]}"
        raise LoadFailed(
            f"this process has {self.namespace} of {found}, and the artifact was built with {built}.",
            remedy="load that revision, or build the artifact again with this one.",
        )


def kernels_of(producer: Mapping[str, str]) -> list[Kernel]:
    """Those that an artifact says its graphs call. Raises Malformed."""
    return [Kernel.parse(name.removeprefix(_PREFIX), text) for name, text in sorted(producer.items()) if name.startswith(_PREFIX)]


def described(nodes: Iterable[bytes]) -> dict[str, str]:
    """The producer's parts for graphs whose operators these say (`beside`), and where each comes from in this process."""
    found = {}
    for namespace, operators in foreign(nodes).items():
        file = registrar(namespace, operators)
        origin = (HubKernel.of(file) or Installed.of(file)) if file else None
        found[f"{_PREFIX}{namespace}"] = str(Kernel(namespace, operators, origin))
    return found
