"""Fingerprint: the structural identity of a live module: everything that tracing it would bake into a graph, and no weight."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any, Self

import torch
from torch import nn

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.model.signature import TensorSpec

_NOTES = ("lora_scale",)  # what fuse_lora() leaves behind to undo itself by; no forward reads it
# a class of ours that is put into models goes by the name it had when the first artifacts were built
_FIRST_NAMES = {"aot.model.ip_adapter": "aot.ip_adapter"}
_BAKED = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One line a submodule, by path: class, plain attributes, weights' specs; and the digest of the source that is traced."""

    lines: dict[str, str]
    source: Digest

    @property
    def digest(self) -> Digest:
        return Digest.of(encode([self.lines, str(self.source)]))

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Reads structure and metadata only; no weight is touched and nothing is moved."""
        found = list(module.named_modules())
        return cls(
            lines={path: _line(child) for path, child in found},
            source=_source(kind for _, child in found for kind in _classes(child)),
        )

    def to_json(self) -> dict[str, Any]:
        return {"lines": self.lines, "source": str(self.source)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(lines=value["lines"], source=Digest.parse(value["source"]))

    def differs(self, live: Fingerprint) -> str | None:
        """What `live` has that this one was not built for, in words, or None."""
        if added := [path for path in live.lines if path not in self.lines]:
            return f"{len(added)} submodules were added, the first is {added[0]!r}{_advice(added)}"
        if gone := [path for path in self.lines if path not in live.lines]:
            return f"{len(gone)} submodules are gone, the first is {gone[0]!r}"
        changed = [path for path, line in self.lines.items() if live.lines[path] != line]
        if changed:
            built, here = self.lines[changed[0]].split(" "), live.lines[changed[0]].split(" ")
            ours = [word for word in here if word not in built] or here
            theirs = [word for word in built if word not in here] or built
            return f"{changed[0] or 'the module'} has {' '.join(ours)[:200]}, built for {' '.join(theirs)[:200]}"
        if self.source != live.source:
            return "the modeling source differs: diffusers, or the class itself, was changed since"
        return None


def _advice(paths: list[str]) -> str:
    if any("lora" in path for path in paths):
        return " (a LoRA that is not fused: call fuse_lora() and unload_lora_weights(), or build with it)"
    if any("to_qkv" in path or "to_kv" in path for path in paths):
        return " (projections were fused: build with --fuse-qkv, or load without)"
    return ""


def _line(module: nn.Module) -> str:
    attributes = vars(module)
    words = [_name(type(module))]
    plain = {name: value for name, value in sorted(attributes.items()) if name[0] != "_" and name not in _NOTES}
    words += [f"{name}={_word(value)}" for name, value in plain.items() if _is_baked(value)]
    for name, value in sorted(attributes.items()):
        if name[0] != "_" and _is_collaborator(value):
            inner = [f"{key}={_word(item)}" for key, item in sorted(vars(value).items()) if _is_baked(item)]
            words.append(f"{name}={_name(type(value))}({','.join(inner)})")
        elif isinstance(value, FunctionType) and name != "forward":
            words.append(f"{name}={value.__module__}.{value.__qualname__}")
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None:
            spec = TensorSpec.of(tensor)
            words.append(f"{name}:{spec}{list(spec.stride)}@{spec.device}".replace(" ", ""))
    return " ".join(words)


def _is_baked(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_baked, value))
    return isinstance(value, _BAKED)


def _is_collaborator(value: Any) -> bool:
    """An object of the model's own code that its forward calls: diffusers' attention processors are such."""
    return type(value).__module__.startswith("diffusers.models") and not isinstance(value, nn.Module | dict | type)


def _word(value: Any) -> str:
    return repr(value).replace(" ", "")


def _name(kind: type) -> str:
    return f"{_FIRST_NAMES.get(kind.__module__, kind.__module__)}.{kind.__qualname__}"


def _classes(module: nn.Module) -> Iterator[type]:
    yield type(module)
    yield from (type(value) for value in vars(module).values() if _is_collaborator(value))


def _source(kinds: Iterable[type]) -> Digest:
    """The digest of the files that define `kinds`; torch's own are named by its version."""
    modules = sorted({base.__module__ for kind in set(kinds) for base in kind.__mro__ if not _is_library(base.__module__)})
    return Digest.of(encode(sorted([_FIRST_NAMES.get(name, name), _file(name)] for name in modules)))


def _is_library(module: str) -> bool:
    return module == "builtins" or module.split(".", maxsplit=1)[0] in ("torch", "abc", "typing", "collections")


@cache
def _file(module: str) -> str:
    """The digest of a module's source as text; empty where it has no file (a class made in an interactive session)."""
    path = getattr(sys.modules.get(module), "__file__", None)
    return str(Digest.of(Path(path).read_bytes())) if path and Path(path).is_file() else ""
