"""Fingerprint: the structural identity of a live module: everything that tracing it would bake into a graph, and no weight."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Self

from torch import nn

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.errors import Unsupported
from aot.model.attributes import own_attributes
from aot.model.collector import is_collecting_hook
from aot.model.functions import name_of, static
from aot.model.slots import SLOTS, beneath, is_slotted, plain_class
from aot.model.words import Met, Words, weight_word

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_OFFLOADED = "_hf_hook"  # accelerate's hook, which runs around a root's forward
_AROUND = frozenset({"forward", "_old_forward", _OFFLOADED})

Line = tuple[str, tuple[str, ...]]
_EMPTY = frozenset({"None", "[]", "{}"})
_NOTED = re.compile(r"config\.(\w+\.)*dtype=")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """One line a submodule, in the order of the tree: its path, and its class, attributes and weights' specs in words.

    Of a submodule that comes again the line says where it was first. `unknown`: why this is no identity, when something
    could not be described; then it equals nothing. With `through`, of a layer that LoRA adapters were put around it is the layer's.
    """

    lines: tuple[Line, ...]
    unknown: str = ""
    through: bool = field(default=False, compare=False)
    met: Met = field(default_factory=Met, compare=False, repr=False)

    @property
    def digest(self) -> Digest:
        return Digest.of(encode([[path, list(words)] for path, words in self.lines] + [[self.unknown]] * bool(self.unknown)))

    @property
    def stem(self) -> Digest:
        """The same before and after a first call: without attributes that are tensors, None or empty. Caches start so."""
        return self._stemmed().digest

    @property
    def essence(self) -> Self:
        """What a class and its config make, wherever it is: the stem, as on a CPU. A config that a library read from a file notes the
        dtype of weights, which are there to be looked at."""
        lines = [
            (path, [word.replace("@cuda", "@cpu") for word in words if not _NOTED.match(word)]) for path, words in self._stemmed().lines
        ]
        return type(self)(tuple((path, tuple(words)) for path, words in lines), self.unknown)

    def _stemmed(self) -> Self:
        return type(self)(tuple((path, tuple(word for word in words if not _is_made(word))) for path, words in self.lines), self.unknown)

    @classmethod
    def of(cls, module: nn.Module, *, fakes: bool = False, served: bool = False, through: bool = False) -> Self:
        """Reads structure and metadata only; no weight is touched and nothing is moved.

        `fakes`: weights may be those of a device that is absent. `served`: something of ours stands for the module's forward,
        and what a user has wrapped around it since runs around it. `through`: as the module was before LoRA adapters were put
        into it.
        """
        first: dict[int, str] = {}
        tree = list(_tree(module, "", first, through=through))
        words = Words(first)
        weights: dict[int, str] = {}
        lines: list[Line] = []
        for path, child in tree:
            if first[id(child)] != path:
                lines.append((path, (f"is:{first[id(child)] or 'the-module'}",)))
                continue
            try:
                lines.append((path, tuple(_line(child, path, words, weights, fakes=fakes, served=served))))
            except Unsupported as error:
                return cls(tuple(lines), f"{path or 'the module'}: {error.message}", through, words.met)
        return cls(tuple(lines), through=through, met=words.met)

    def to_json(self) -> list[Any]:
        return [[path, list(words)] for path, words in self.lines]

    @classmethod
    def from_json(cls, value: list[Any]) -> Self:
        return cls(tuple((path, tuple(words)) for path, words in value))

    def differs(self, live: Fingerprint) -> str | None:
        """What `live` has that this one was not built for, in words, or None."""
        if live.unknown:
            return live.unknown
        mine, theirs = dict(self.lines), dict(live.lines)
        if added := [path for path in theirs if path not in mine]:
            return f"{len(added)} submodules were added, the first is {added[0]!r}{_advice(added)}"
        if gone := [path for path in mine if path not in theirs]:
            return f"{len(gone)} submodules are gone, the first is {gone[0]!r}"
        for path, built in self.lines:
            if theirs[path] != built:
                return f"{path or 'the module'} {_differing(built, theirs[path])}"
        if self.lines != live.lines:
            pairs = zip(self.lines, live.lines, strict=True)
            moved = next(there for (here, _), (there, _) in pairs if here != there)
            return f"the submodules are in another order, the first that moved is {moved!r}"
        return None

    def since(self, earlier: Fingerprint) -> tuple[Line, ...]:
        """The lines that are not as they were in `earlier`; none where other submodules are there now."""
        known = dict(earlier.lines)
        return tuple(line for line in self.lines if known[line[0]] != line[1]) if known.keys() == dict(self.lines).keys() else ()

    def updated(self, lines: Collection[Line]) -> Self:
        """With these lines in the place of those of the same paths."""
        new = dict(lines)
        return type(self)(tuple((path, new.get(path, words)) for path, words in self.lines), self.unknown)

    def without(self, attributes: Collection[str]) -> Self:
        """Without these attributes of the module itself, which no code of it reads."""
        if not attributes or not self.lines:
            return self
        (path, words), *others = self.lines
        kept = tuple(word for word in words if word.partition("=")[0] not in attributes)
        return type(self)(((path, kept), *others), self.unknown, self.through, self.met)

    def distance(self, live: Fingerprint) -> int:
        """How many lines only one of the two has."""
        return len(set(self.lines) ^ set(live.lines))


def _is_made(word: str) -> bool:
    """Whether a word is of what nobody has made yet, or of what a first call makes of it."""
    _, equals, value = word.partition("=")
    return bool(equals) and (value in _EMPTY or "tensor(" in value)


def _tree(module: nn.Module, path: str, first: dict[int, str], *, through: bool) -> Iterator[tuple[str, nn.Module]]:
    """Every place of the tree in order; below one that was seen before nothing is repeated."""
    again = id(module) in first
    first.setdefault(id(module), path)
    yield path, module
    if not again:
        for name, child in module._modules.items():
            if child is not None:
                yield from _tree(beneath(child) if through else child, f"{path}.{name}".lstrip("."), first, through=through)


def _line(module: nn.Module, path: str, words: Words, weights: dict[int, str], *, fakes: bool, served: bool) -> Iterator[str]:
    yield words.class_word(plain_class(type(module)))
    if path:
        _refuse_hooks(module)
    for name, value in sorted(_attributes(module, root=not path, served=served).items()):
        yield from (word.replace(" ", "\u00b7") for word in words.spell(name, value))
    for name, child in module._modules.items():
        if child is None:
            yield f"{name}=None"
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if name in SLOTS and is_slotted(module):
            continue
        if tensor is None:
            yield f"{name}=None"
            continue
        known = weights.setdefault(id(tensor), f"{path}.{name}")
        try:
            yield f"{name}:{weight_word(tensor, fakes=fakes)}" + (f"=@{known}" if known != f"{path}.{name}" else "")
        except Unsupported as error:
            raise Unsupported(f"weight {name}: {error.message}") from error


def _attributes(module: nn.Module, *, root: bool, served: bool) -> dict[str, Any]:
    """What an instance has of its own beside children and weights; a root without what runs around its forward."""
    own = {name: value for name, value in own_attributes(module).items() if not is_natural(module, name, value)}
    if not root:
        return own
    around = vars(module).get("_old_forward") if _OFFLOADED in own else own.get("forward")
    kept = {name: value for name, value in own.items() if name not in _AROUND}
    natural = around is None or is_natural(module, "forward", around)
    return kept if served or natural else {**kept, "forward": around}


def is_natural(module: nn.Module, name: str, value: Any) -> bool:
    """Whether a method kept on the instance is the class' own: pickling a module that was served leaves one."""
    if not isinstance(value, MethodType) or value.__self__ is not module:
        return False
    with suppress(AttributeError):
        return value.__func__ is static(type(module), name)
    return False


def _refuse_hooks(module: nn.Module) -> None:
    """A graph runs none of a submodule's hooks, not even those that only look; the collector's are looked at around each call."""
    for kind in HOOKS:
        for hook in vars(module)[kind].values():
            if is_collecting_hook(hook):
                continue
            name = name_of(hook) if hasattr(hook, "__code__") else type(hook).__qualname__
            raise Unsupported(f"it has a hook, {name} ({kind.strip('_').removesuffix('s').replace('_', ' ')}), which no graph would run.")


def _differing(built: tuple[str, ...], live: tuple[str, ...]) -> str:
    ours = [word for word in live if word not in built]
    theirs = [word for word in built if word not in live]
    if not ours and not theirs:
        return f"has its {'weights' if sorted(built) == sorted(live) else 'attributes'} in another order"
    said = f"has {' '.join(ours)[:200]}" if ours else "lacks it"
    return f"{said}, built for {' '.join(theirs)[:200]}" if theirs else f"{said}, built without"


def _advice(paths: list[str]) -> str:
    if any("lora" in path for path in paths):
        return " (a LoRA that is not fused: call fuse_lora() and unload_lora_weights(), or build with --lora-rank)"
    if any("to_qkv" in path or "to_kv" in path for path in paths):
        return " (projections were fused: build with --fuse-qkv, or load without)"
    return ""
