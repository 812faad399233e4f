"""Functions: names that lead to them in any process, digests of what they do, and what stands under a name now."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import linecache
import sys
import textwrap
import tokenize
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn
from torch._ops import OpOverloadPacket

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"  # bytecode is another in each minor version of Python
_LOCALS = ".<locals>."
_LIBRARIES = ("builtins", "torch", "abc", "typing", "collections")


def name_of(function: types.FunctionType) -> str:
    """`module:qualname` by its code: `functools.wraps` changes what a function says of itself, and not where it was written."""
    return f"{function.__globals__.get('__name__', '?')}:{function.__code__.co_qualname}"


def outermost(name: str) -> str:
    """The name of the function that a lambda, comprehension or closure was written in: they count with it."""
    return name.split(_LOCALS, maxsplit=1)[0]


def is_named(value: Any) -> bool:
    """Whether the name that a class or function has leads to it."""
    return _found(value.__module__, value.__qualname__) is value


def stands_at(name: str) -> Any:
    """What stands under `module:qualname` in this process, as the class or module has it; None where nothing does."""
    module, _, qualname = name.partition(":")
    return _found(module, qualname)


def _found(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    if found is None:
        with suppress(Exception):  # not imported yet: part of a library that is imported lazily
            found = importlib.import_module(module)
    for part in qualname.split("."):
        try:
            found = static(found, part) if isinstance(found, type) else vars(found)[part]
        except (TypeError, KeyError, AttributeError):
            return None
    return found


def static(kind: type, name: str) -> Any:
    """A class' attribute as it is written, before descriptors make something else of it. Raises AttributeError."""
    for base in kind.__mro__:
        if name in vars(base):
            return vars(base)[name]
    raise AttributeError(name)


def functions_in(value: Any, seen: set[int] | None = None) -> Iterator[types.FunctionType]:
    """The functions that a decorated, bound or described one is made of, the outermost first."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        yield value
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # empty
                yield from functions_in(cell.cell_contents, seen)
        yield from functions_in(vars(value).get("__wrapped__"), seen)
    elif isinstance(value, staticmethod | classmethod | types.MethodType):
        yield from functions_in(value.__func__, seen)
    elif isinstance(value, property):
        yield from functions_in(value.fget, seen)
    elif isinstance(value, functools.partial):
        yield from functions_in(value.func, seen)
    elif isinstance(value, functools._lru_cache_wrapper):
        yield from functions_in(value.__wrapped__, seen)


def code_at(name: str) -> types.CodeType | None:
    """The code that a function of this name runs in this process, wherever decorators have put it; None where it is gone."""
    module, _, qualname = name.partition(":")
    there = stands_at(name)
    # the function went into torch's registry of operators, which does not give it back: torch.library.custom_op leaves the operator in
    # its place, torch.library.impl leaves None
    if isinstance(there, OpOverloadPacket) or (there is None and qualname in vars(sys.modules.get(module, object))):
        return _written(module, qualname)
    found = [function.__code__ for function in functions_in(there)]
    generated = next((code for code in found if is_generated(code)), None)
    return next((code for code in found if code.co_qualname == qualname), generated)


@functools.cache
def _written(module: str, qualname: str) -> types.CodeType | None:
    """The code of a function as the module's file has it."""
    loader = getattr(getattr(sys.modules.get(module), "__spec__", None), "loader", None)
    with suppress(Exception):
        pending = [loader.get_code(module)]  # type: ignore[union-attr]
        while pending:
            code = pending.pop()
            if code.co_qualname == qualname:
                found: types.CodeType = code
                return found
            pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return None


def is_generated(code: types.CodeType) -> bool:
    """Whether it was made from a text rather than a file: what `dataclass` writes for a class."""
    return code.co_filename.startswith("<")


def code_digest(code: types.CodeType) -> str:
    """Of the bytecode and all it refers to; neither of lines nor paths. Comparable within one minor version of Python."""
    return Digest.of(repr(_plain(code)).encode()).short


def _plain(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_plain(found) if isinstance(found, types.CodeType) else _constant(found) for found in code.co_consts]
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    return code.co_code.hex(), constants, names, counts, code.co_exceptiontable.hex()


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def tree_digest(code: types.CodeType) -> str:
    """Of the syntax tree of the function's own lines, without docstrings, comments and annotations; empty where no file has it."""
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    with suppress(SyntaxError, tokenize.TokenError, IndentationError):
        return Digest.of(_dump(ast.parse(textwrap.dedent("".join(inspect.getblock(lines))))).encode()).short
    return ""


def _dump(node: Any) -> str:
    """As `ast.dump`, the same in every version of Python: what is empty, and what was written for readers, is left out."""
    if isinstance(node, list):
        return "[" + ",".join(map(_dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.AnnAssign):
        if node.value is None:
            return ""
        node = ast.Assign(targets=[node.target], value=node.value)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "kind", "type_comment", "annotation", "returns", "type_params", "type_ignores") or value is None or value == []:
            continue
        kept = _without_docstring(value) if name == "body" and isinstance(value, list) else value
        fields.append(f"{name}={_dump(kept)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if documented else body


def source_digest(module: nn.Module) -> Digest:
    """Of the files that define the classes of the module's tree; torch's own are named by its version."""
    bases = {base.__module__ for child in module.modules() for base in type(child).__mro__}
    return Digest.of(encode(sorted([name, _file(name)] for name in bases if name.split(".", maxsplit=1)[0] not in _LIBRARIES)))


@functools.cache
def _file(module: str) -> str:
    """The digest of a module's source as text; empty where it has no file (a class made in an interactive session)."""
    path = getattr(sys.modules.get(module), "__file__", None)
    return str(Digest.of(Path(path).read_bytes())) if path and Path(path).is_file() else ""
