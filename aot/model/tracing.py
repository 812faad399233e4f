"""Tracing: the functions of a model that run while it is exported, and the names that they go by."""

from __future__ import annotations

import dis
import gc
import inspect
import logging
import sys
import types
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

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
# What runs beneath these computes nothing: finding and loading a module, handling a log record, showing a warning, and what
# the end of an object calls, which may come at any moment
_ASIDES = {
    ("<frozen importlib._bootstrap>", "_find_and_load"),
    (logging.__file__, "_log"),
    (warnings.__file__, "_showwarnmsg"),
    (weakref.__file__, "__call__"),
    (weakref.__file__, "remove"),
}
_ASIDE_NAMES = {name for _, name in _ASIDES}
_AT_THE_END = "__del__"

Codes: TypeAlias = list[tuple[types.CodeType, dict[str, Any]]]  # with the globals of each


@contextmanager
def tracing() -> Iterator[Codes]:
    """The code of every function that runs within, in this thread, with its globals; of models alone once it is over."""
    seen: dict[int, tuple[types.CodeType, dict[str, Any]]] = {}  # by identity: a code's own hash reads all of it
    codes: Codes = []
    aside = 0
    collecting = {id(code) for found in gc.callbacks if (code := getattr(found, "__code__", None))}

    def note(frame: types.FrameType, event: str, _: object) -> None:
        nonlocal aside
        code = frame.f_code
        name = code.co_name
        if (name in _ASIDE_NAMES and (code.co_filename, name) in _ASIDES) or name == _AT_THE_END or id(code) in collecting:
            aside += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not aside and id(code) not in seen:
            seen[id(code)] = code, frame.f_globals

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield codes
    finally:
        sys.setprofile(before)
        codes += [(code, found) for code, found in seen.values() if _is_models(code, found.get("__name__") or "")]


def _is_models(code: types.CodeType, module: str) -> bool:
    """Whether it is a function (bodies of modules and classes run when something is imported) of a model's own code."""
    if not code.co_flags & inspect.CO_OPTIMIZED or (module == "torch.nn.modules.module" and code.co_name not in _OF_MODULE):
        return False
    return module.startswith(_OURS) or not (module.startswith("namedtuple_") or module.split(".", maxsplit=1)[0] in _MACHINERY)


def mentioned(code: types.CodeType) -> Iterator[str]:
    """Every name that the code may look up on an object, those it has as texts included (`getattr(x, "scale", None)`)."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from mentioned(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant


def reads(code: types.CodeType, found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
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
            yield from reads(constant, found)
