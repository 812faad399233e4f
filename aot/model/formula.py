"""Formula: a size, or a condition on sizes, of symbols that stand for whole numbers: what torch's tracing says of a graph's inputs."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from aot.errors import Unsupported

Value: TypeAlias = int | float | bool
_Code: TypeAlias = Callable[[Mapping[str, int]], Any]

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: lambda a, b: a and b,
    ast.BitOr: lambda a, b: a or b,
}
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("Mod", "PythonMod"), operator.mod),
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "IntTrueDiv": operator.truediv,
    "ToFloat": float,
    "Max": max,
    "Min": min,
    "Eq": operator.eq,
    "Ne": operator.ne,
    "And": lambda *all_of: all(all_of),
    "Or": lambda *any_of: any(any_of),
}
_LARGEST = 32  # the exponent that a power may have


@dataclass(frozen=True, slots=True)
class Formula:
    """In the spelling of sympy: numbers, names, `+ - * // % **`, comparisons, `&`, `|`, `~`, and a few functions (Mod, Max, Eq).

    Made of text from anywhere: it is read by these rules and nothing of it is run.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def at(self, values: Mapping[str, int]) -> Value:
        """Its value. Raises KeyError for a name that has none, ZeroDivisionError."""
        found: Value = _read(self.text)(values)
        return found

    @property
    def names(self) -> frozenset[str]:
        return frozenset(node.id for node in ast.walk(ast.parse(self.text, mode="eval")) if isinstance(node, ast.Name)) - _FUNCTIONS.keys()

    def check(self) -> None:
        """Raises Unsupported where it is none."""
        _read(self.text)


@cache
def _read(text: str) -> _Code:
    try:
        return _code(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _refused(text) from error


def _code(node: ast.expr) -> _Code:
    match node:
        case ast.Constant(value=bool() | int() | float() as value) if float(value).is_integer():  # 2.0 stands beside a quotient
            return lambda _: value
        case ast.Name(id=name):
            return lambda values: values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _code(operand)
            return lambda values: -inner(values)
        case ast.UnaryOp(op=ast.Invert() | ast.Not(), operand=operand):
            inner = _code(operand)
            return lambda values: not inner(values)
        case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=int() as power)) if 0 <= power <= _LARGEST:
            base = _code(left)
            return lambda values: base(values) ** power
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _OPERATORS:
            return _applied(_OPERATORS[type(op)], [_code(left), _code(right)])
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            return _applied(_COMPARISONS[type(op)], [_code(left), _code(right)])
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _applied(_FUNCTIONS[name], list(map(_code, args)))
        case _:
            raise _refused(ast.unparse(node))


def _applied(function: Callable[..., Any], inners: list[_Code]) -> _Code:
    return lambda values: function(*(inner(values) for inner in inners))


def _refused(text: str) -> Unsupported:
    return Unsupported(f"{text[:200]!r} is no formula of sizes that can be checked at a call.", remedy="build each size by itself.")
