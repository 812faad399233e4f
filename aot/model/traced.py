"""Traced code: the functions that ran while a graph was exported, and what they read of their modules and classes."""

from __future__ import annotations

import dis
import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self, TypeAlias

import torch
from torch import nn

from aot.errors import Unsupported
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
from aot.model.words import Words, class_name

# What runs beneath an export without being the model's: the compiler, and what it is made of
_MACHINERY = {
    "torch",
    "sympy",
    "mpmath",
    "networkx",
    "numpy",
    "aot",
    "filelock",
    "packaging",
    "typing_extensions",
    *sys.stdlib_module_names,
}
# what of these is the model's all the same
_OURS = ("torch.nn.modules.", "torch.nn.functional", "torch.nn.utils.parametri", "aot.model.ip_adapter")
_OF_MODULE = {"_wrapped_call_impl", "_call_impl", "_slow_forward", "__getattr__"}  # and of what every module has, which export uses too
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

_IMPORT = ("_find_and_load", "<frozen importlib._bootstrap>")

Codes: TypeAlias = dict[types.CodeType, dict[str, Any]]


@contextmanager
def tracing() -> Iterator[Codes]:
    """The code of every function that runs within, in this thread, with its globals; of models alone once it is over."""
    seen: Codes = {}
    importing = 0  # what runs while a module is found and loaded computes nothing

    def note(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal importing
        code = frame.f_code
        if code.co_name == _IMPORT[0] and code.co_filename == _IMPORT[1]:
            importing += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not importing and code not in seen:
            seen[code] = frame.f_globals

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)
        for code in [code for code, found in seen.items() if not _is_models(code, found.get("__name__") or "")]:
            del seen[code]


def _is_models(code: types.CodeType, module: str) -> bool:
    """Whether it is a function (bodies of modules and classes run when something is imported) of a model's own code."""
    if not code.co_flags & inspect.CO_OPTIMIZED or (module == "torch.nn.modules.module" and code.co_name not in _OF_MODULE):
        return False
    return module.startswith(_OURS) or not (module.startswith("namedtuple_") or module.split(".", maxsplit=1)[0] in _MACHINERY)


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
        functions, places, reads, mentioned = dict[str, tuple[str, str]](), dict[str, str](), dict[str, Any](), set[str](_SPECIAL)
        for code, found in codes.items():
            mentioned |= set(_mentioned(code))
            if "__name__" in found:
                reads |= {f"{found['__name__']}:{chain}": value for chain, value in _reads(code, found)}
        kinds = {*_kinds(module), *(value for value in reads.values() if isinstance(value, type))}
        for code, found in codes.items():
            ran = f"{found.get('__name__', '?')}:{code.co_qualname}"
            name = _member(kinds, code) if is_generated(code) else outermost(ran)
            whole = code_at(name)
            if whole is None and "__name__" in found and not _is_described(code, module):  # the compiler's own have no module
                raise Unsupported(f"{ran} was traced, and no name leads to it: another process could not compare it.")
            if whole is not None:
                functions[name] = code_digest(whole), tree_digest(whole)
                places[name] = _word(stands_at(name))
        found_globals = {name: word for name, value in reads.items() if (word := _brief(value, functions)) is not None}
        names = tuple(sorted(mentioned))
        return cls(MINOR, torch.__version__, functions, places, found_globals, names, _bindings(kinds, names, functions))

    def __or__(self, other: TracedCode) -> TracedCode:
        """What either was traced from."""
        names = tuple(sorted({*self.names, *other.names}))
        classes = {kind: {**self.classes.get(kind, {}), **other.classes.get(kind, {})} for kind in {*self.classes, *other.classes}}
        functions, places, reads = self.functions | other.functions, self.places | other.places, self.globals | other.globals
        return TracedCode(self.python, self.torch, functions, places, reads, names, classes)

    def differs(self, module: nn.Module) -> str | None:
        """What this process would run or read for `module` and was not traced, in words, or None."""
        live = self._live()
        return self._functions_differ() or self._globals_differ() or live._classes_differ(module)

    def _live(self) -> TracedCode:
        """Without what torch's own version stands for, where another one is allowed."""
        if self.torch == torch.__version__:
            return self

        def foreign(table: dict[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in table.items() if not name.startswith("torch")}

        tables = foreign(self.functions), foreign(self.places), foreign(self.globals)
        return TracedCode(self.python, self.torch, *tables, self.names, foreign(self.classes))

    def _functions_differ(self) -> str | None:
        for name, (bytecode, tree) in self.functions.items():
            code = code_at(name)
            if code is None:
                return f"{name} is gone"
            if (self.python != MINOR or code_digest(code) != bytecode) and (not tree or tree_digest(code) != tree):
                return f"{name} was changed since"
        return next(
            (
                f"{name} is {_word(stands_at(name))}, traced was {word}"
                for name, word in self.places.items()
                if _word(stands_at(name)) != word
            ),
            None,
        )

    def _globals_differ(self) -> str | None:
        for name, word in self.globals.items():
            here = _brief(read(name), self.functions)
            if here != word:
                return f"{name} is {here}, traced was {word}"
        return None

    def _classes_differ(self, module: nn.Module) -> str | None:
        kinds = {*_kinds(module), *(found for name in self.globals if isinstance(found := read(name), type))}
        live = _bindings(kinds, self.names, self.functions)
        for kind, built in self.classes.items():
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


def _member(kinds: Iterable[type], code: types.CodeType) -> str:
    """The name of a method that was generated, by the class that has it; empty where none does."""
    for base in {base for kind in kinds for base in kind.__mro__}:
        for name, value in vars(base).items():
            if isinstance(value, types.FunctionType) and value.__code__ is code:
                return f"{base.__module__}:{base.__qualname__}.{name}"
    return ""


def _mentioned(code: types.CodeType) -> Iterator[str]:
    """Every name that the code may look up on an object, those it has as texts included (`getattr(x, "scale", None)`)."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _mentioned(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def _reads(code: types.CodeType, found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the code reads of its module, by the names it goes through: `F.gelu` is what stands in another module under a name."""
    chain, value = "", None
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and name in found:
            chain, value = name, found[name]
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, types.ModuleType) and name in vars(value):
            chain, value = f"{chain}.{name}", vars(value)[name]
        elif instruction.opname not in ("PRECALL", "CACHE", "EXTENDED_ARG", "NOP"):
            chain, value = "", None
        if chain and not isinstance(value, types.ModuleType):
            yield chain, value
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _reads(constant, found)


def read(name: str) -> Any:
    """What `module:name.name` leads to now; None where it leads nowhere."""
    module, _, chain = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in chain.split("."):
        found = vars(found).get(part) if isinstance(found, types.ModuleType) else None
    return found


def _word(value: Any) -> str:
    """One word for what code reads; its kind alone where nothing exact can be said."""
    with suppress(Unsupported):
        return Words(codes=False).of(value)
    return f"a {class_name(type(value))}"


def _brief(value: Any, traced: Iterable[str]) -> str | None:
    """One word for a global or a class' attribute; None where it is no part of what is computed."""
    if isinstance(value, types.ModuleType) or type(value).__name__ == "Logger":
        return None
    if isinstance(value, type):
        return class_name(value)
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


def _kinds(module: nn.Module) -> set[type]:
    """The classes of the module's tree, and of the objects that it keeps."""
    words = Words({id(child): path for path, child in module.named_modules()})
    for child in module.modules():
        for name, value in vars(child).items():
            with suppress(Unsupported):
                words.of(value, name)
    return {type(child) for child in module.modules()} | {type(found) for found in words.met.objects}


def _is_described(code: types.CodeType, module: nn.Module) -> bool:
    """Whether a function of this code is kept in the module's own attributes, where its fingerprint has its bytecode."""
    words = Words({id(child): path for path, child in module.named_modules()})
    for child in module.modules():
        for value in vars(child).values():
            with suppress(Unsupported):
                words.of(value)
    return any(function.__code__ is code for function in words.met.functions)


def _bindings(kinds: Iterable[type], names: Iterable[str], traced: Iterable[str]) -> dict[str, dict[str, str]]:
    """By class, what each of `names` leads to on it."""
    known: dict[int, str | None] = {}
    found: dict[str, dict[str, str]] = {}
    for kind in kinds:
        own = found.setdefault(class_name(kind), {})
        inherited = {name for base in kind.__mro__ if base is not object for name in vars(base)}
        for name in inherited.intersection(names):
            value = static(kind, name)
            if id(value) not in known:
                known[id(value)] = _brief(value, traced)
            if (word := known[id(value)]) is not None:
                own[name] = word
    return found
