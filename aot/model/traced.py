"""Traced code: the functions that ran while a graph was exported, and what they read of their modules and classes."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Self

import torch
from torch import nn
from torch._ops import _OpNamespace, _Ops  # checked on torch 2.14.1

from aot.errors import Unsupported
from aot.model.attributes import own_attributes
from aot.model.collector import is_registry, outputs_of
from aot.model.functions import (
    MINOR,
    code_at,
    code_digest,
    functions_in,
    is_generated,
    name_of,
    outermost,
    stands_at,
    static,
    tree_digest,
)
from aot.model.slots import beneath_all, plain_class
from aot.model.tracing import Codes, mentioned, reads
from aot.model.words import Met, Words, class_name

# Methods that Python or torch looks up without any code naming them
_SPECIAL = (
    "__call__",
    "forward",
    "_call_impl",
    "_wrapped_call_impl",
    "_slow_forward",
    "__getattr__",
    "__getattribute__",
    "__iter__",
    "__len__",
)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)
_FEW = 16  # a longer table is a registry, of which only what was traced matters


@dataclass(frozen=True, slots=True)
class TracedCode:
    """What a graph was traced from, by name, in words that are the same in every process with the same code.

    `functions`: by `module:qualname` the digests of bytecode (of `python`) and of the syntax tree. `places`: what stands there,
    decorators and defaults included. `globals`: by `module:name.name` what they read. `names`: every attribute they mention;
    `classes`: by class, what each of these leads to on it.
    """

    python: str = MINOR
    torch: str = torch.__version__
    functions: dict[str, tuple[str, str]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    globals: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    classes: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, codes: Codes, module: nn.Module) -> Self:
        """What tracing `module` noted. Raises Unsupported for a function that no name leads to: nothing could compare it."""
        functions, places, values, names = dict[str, tuple[str, str]](), dict[str, str](), dict[str, Any](), set[str](_SPECIAL)
        for code, found in codes:
            names |= set(mentioned(code))
            if "__name__" in found:
                values |= {f"{found['__name__']}:{chain}": value for chain, value in reads(code, found)}
        modules = dict(module.named_modules())
        met = _met(modules)
        described = {id(function.__code__) for function in met.functions}  # its fingerprint has their bytecode
        kinds = {*_kinds(modules.values(), met), *(value for value in values.values() if isinstance(value, type))}
        for code, found in codes:
            ran = f"{found.get('__name__', '?')}:{code.co_qualname}"
            name = _member({*kinds, *_classes_of(found)}, code) if is_generated(code) else outermost(ran)
            whole = code_at(name)
            if whole is None and "__name__" in found and id(code) not in described:  # the compiler's own have no module
                raise Unsupported(f"{ran} was traced, and no name leads to it: another process could not compare it.")
            if whole is not None:
                functions[name] = code_digest(whole), tree_digest(whole)
                places[name] = _word(stands_at(name))
        found_globals = {name: word for name, value in values.items() if (word := _brief(value, functions)) is not None}
        bindings = _bindings(kinds, names, functions)
        return cls(MINOR, torch.__version__, functions, places, found_globals, tuple(sorted(names)), bindings)

    def __or__(self, other: TracedCode) -> TracedCode:
        """What either was traced from."""
        names = tuple(sorted({*self.names, *other.names}))
        classes = {kind: {**self.classes.get(kind, {}), **other.classes.get(kind, {})} for kind in {*self.classes, *other.classes}}
        functions, places, values = self.functions | other.functions, self.places | other.places, self.globals | other.globals
        return TracedCode(self.python, self.torch, functions, places, values, names, classes)

    def differs(self, module: nn.Module, *, through: bool = False) -> str | None:
        """What this process would run or read for `module` and was not traced, in words, or None; `through`: for what it was before
        LoRA adapters were put into it."""
        known = self._known()
        return (
            known._functions_differ() or known._places_differ() or known._globals_differ() or known._classes_differ(module, through=through)
        )

    def adopted(self) -> TracedCode:
        """With the functions of this process in the place of those that were traced: somebody has found that they do the same."""
        live = {name: (code_digest(code), tree_digest(code)) for name in self.functions if (code := code_at(name))}
        return replace(self, python=MINOR, functions={**self.functions, **live})

    def _known(self) -> TracedCode:
        """Without what torch's own version stands for, where another one is allowed."""
        if self.torch == torch.__version__:
            return self

        def foreign(table: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in table.items() if not name.startswith("torch")}

        functions, places = foreign(self.functions), foreign(self.places)
        return replace(self, functions=functions, places=places, globals=foreign(self.globals), classes=foreign(self.classes))

    def _functions_differ(self) -> str | None:
        for name, (bytecode, tree) in self.functions.items():
            code = code_at(name)
            if code is None:
                return f"{name} is gone"
            if (self.python != MINOR or code_digest(code) != bytecode) and (not tree or tree_digest(code) != tree):
                return f"{name} was changed since"
        return None

    def _places_differ(self) -> str | None:
        for name, word in self.places.items():
            if (here := _word(stands_at(name))) != word:
                return f"{name} is {here}, traced was {word}"
        return None

    def _globals_differ(self) -> str | None:
        for name, word in self.globals.items():
            here = _brief(read(name), self.functions)
            if here != word:
                return f"{name} is {here}, traced was {word}"
        return None

    def _classes_differ(self, module: nn.Module, *, through: bool) -> str | None:
        modules = dict(beneath_all(module) if through else module.named_modules())
        kinds = {*_kinds(modules.values(), _met(modules)), *(found for name in self.globals if isinstance(found := read(name), type))}
        live = _bindings(kinds, self.names, self.functions)
        for kind, built in sorted(self.classes.items()):
            here = live.get(kind, {})
            for name in sorted({*built, *here}):
                if built.get(name) != here.get(name):
                    return f"{kind}.{name} is {here.get(name, 'gone')}, traced was {built.get(name, 'none')}"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "python": self.python,
            "torch": self.torch,
            "functions": {name: list(digests) for name, digests in self.functions.items()},
            "places": self.places,
            "globals": self.globals,
            "names": list(self.names),
            "classes": self.classes,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        functions = {name: (bytecode, tree) for name, (bytecode, tree) in value["functions"].items()}
        tables = value["places"], value["globals"], tuple(value["names"]), value["classes"]
        return cls(value["python"], value["torch"], functions, *tables)


def _classes_of(space: dict[str, Any]) -> set[type]:
    return {value for value in list(space.values()) if isinstance(value, type)}


def _member(kinds: Iterable[type], code: types.CodeType) -> str:
    """The name of a method that was generated, by the class that has it; empty where none does."""
    for base in {base for kind in kinds for base in kind.__mro__}:
        for name, value in vars(base).items():
            if any(function.__code__ is code for function in functions_in(value)):
                return f"{base.__module__}:{base.__qualname__}.{name}"
    return ""


def read(name: str) -> Any:
    """What `module:name.name` leads to now; None where it leads nowhere."""
    module, _, chain = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in chain.split("."):
        if isinstance(found, _Ops | _OpNamespace):  # operators, which are made when they are first asked for
            getattr(found, part, None)
        found = vars(found).get(part) if isinstance(found, types.ModuleType) else None
    return found


def _word(value: Any) -> str:
    """One word for what code reads; its kind alone where nothing exact can be said."""
    with suppress(Unsupported):
        return Words(codes=False).of(value)
    return f"a {class_name(type(value))}"


def _brief(value: Any, traced: Iterable[str]) -> str | None:
    """One word for a global or a class' attribute; None where it is no part of what is computed."""
    if isinstance(value, types.ModuleType) or type(value).__name__ == "Logger" or is_registry(value):
        return None
    if isinstance(value, type):
        return class_name(value)
    if isinstance(value, types.FunctionType) and not value.__closure__ and stands_at(name_of(value)) is value:
        return name_of(value)  # if it ran, its code and its defaults are compared where it stands; if not, nothing of it matters
    if isinstance(value, _PLAIN) or callable(value) or isinstance(value, property | staticmethod | classmethod):
        return _word(value)
    if isinstance(value, list | tuple | set | frozenset | dict) and len(value) <= _FEW:
        return _word(value)
    return f"{class_name(type(value))}{_registered(value, set(traced))}"


def _registered(value: Any, traced: set[str]) -> str:
    """Of a registry, where the functions that ran are to be found."""
    with suppress(Exception):
        items = [
            (str(key), name) for key, item in value.items() for function in functions_in(item) if (name := name_of(function)) in traced
        ]
        return "{" + ",".join(f"{key}:{name}" for key, name in sorted(items)) + "}"
    return ""


def _met(modules: dict[str, nn.Module]) -> Met:
    """What the modules of the tree keep, as far as it can be described."""
    words = Words({id(child): path for path, child in modules.items()})
    for child in modules.values():
        for name, value in own_attributes(child).items():
            with suppress(Unsupported):
                words.of(value, name)
    return words.met


def _kinds(modules: Iterable[nn.Module], met: Met) -> set[type]:
    """The classes of the modules of a tree, and of the objects that it keeps."""
    return {plain_class(type(found)) for found in [*modules, *met.objects]}


def _before_dynamo(value: Any) -> Any:
    """A method of `nn.Module` as it was before torch.compile wrapped it, in this process or in the one that built, to count modules."""
    if isinstance(value, types.FunctionType) and value.__module__ == "torch._dynamo.mutation_guard" and value.__closure__:
        return value.__closure__[0].cell_contents
    return value


def _bindings(kinds: Iterable[type], names: Iterable[str], traced: Iterable[str]) -> dict[str, dict[str, str]]:
    """By class, what each of `names` leads to on it."""
    known: dict[int, str | None] = {}
    found: dict[str, dict[str, str]] = {}
    for kind in kinds:
        own = found.setdefault(class_name(kind), {})
        inherited = {name for base in kind.__mro__ if base is not object for name in vars(base)}
        for name in inherited.intersection(names):
            value = _before_dynamo(static(kind, name))
            if id(value) not in known:
                known[id(value)] = _brief(value, traced)
            if (word := known[id(value)]) is not None:
                own[name] = word
        if (outputs := outputs_of(kind)) is not None:
            own["outputs that are collected"] = _word(outputs)
    return found
