"""Seal: whether a module, and the code it would run, are what they were when its graphs were loaded. Quick enough for every call."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, contains, getitem, is_, itemgetter
from typing import Any

import torch
from torch import nn
from torch._C._dynamo.guards import dict_version  # checked on torch 2.11.0, 2.13.0 and 2.15.0; imports no compiler

from aot.model.fingerprint import HOOKS
from aot.model.functions import functions_in, stands_at
from aot.model.slots import beneath_all, is_adapter
from aot.model.traced import TracedCode
from aot.model.words import Met

_of_function = attrgetter("__code__", "__defaults__", "__kwdefaults__")
_children = itemgetter("_modules")
_of_cell = attrgetter("cell_contents")
_attributes: Callable[[Any], dict[str, Any]] = vars  # of instances, whose is no proxy


class Seal:
    """What was seen of a module, of the objects it keeps and of the code that was traced; `holds()` looks again.

    Everything is compared in a few passes in C: dicts by the number that Python gives each of their states, and where that is another
    by their contents. It says that something changed and not what: the fingerprint and the traced code do, and may find that nothing of
    theirs did.
    """

    __slots__ = ("_checks",)

    def __init__(self, module: nn.Module, met: Met, code: TracedCode, *, through: bool = False) -> None:
        """`through`: the adapters that are around its layers are left out, but for which layers these are."""
        every = list(module.modules())
        modules = [found for _, found in beneath_all(module)] if through else every
        around = [found for found in every if is_adapter(found)] if through else []
        below = [child for child in modules if child is not module]
        trees = [child._modules for child in modules]
        hooks = [vars(child)[kind] for child in below for kind in HOOKS]
        kinds = _kinds(modules, met)
        places = _places(code, kinds)
        values = [space[name] for space, name in places]
        functions = [*met.functions, *_functions(code)]
        owners = [*modules, *(found for found in met.objects if hasattr(found, "__dict__"))]
        dicts = [*(layer._modules for layer in around), *filter(None, [*trees, *hooks]), *_of_kind(dict, [*met.dicts, *values])]
        sequences = [*met.sequences, *_of_kind((list, set), values)]
        cells = [cell for function in functions for cell in function.__closure__ or () if cell != types.CellType()]
        weights = [held for child in modules for held in (child._parameters, child._buffers)]
        orders = _Orders([vars(child) for child in modules if len(child._modules) > 1])
        self._checks = (
            _Same(types=[*modules, *met.objects], owners=owners, dicts=dicts, orders=orders, sequences=sequences),
            _None([found for found in [*hooks, *trees, *weights] if not found]),
            _Lengths(list(filter(None, weights))),
            _Code(functions, cells, places, [vars(base) for kind in kinds for base in kind.__mro__[:-1]], kinds),
            _Kept(met.tensors, met.slots),
        )

    def holds(self) -> bool:
        """Whether nothing of all that was changed, added, taken away or put in another order."""
        try:
            return all(check.holds() for check in self._checks)
        except Exception:  # noqa: BLE001 - whatever a changed thing answers when it is compared is no equality
            return False


class _Orders:
    """The order of children, which is that of a loop over them and which equal dicts may differ in."""

    __slots__ = ("_keys", "_owners")

    def __init__(self, owners: list[dict[str, Any]]) -> None:
        self._owners, self._keys = owners, self._now(owners)

    @staticmethod
    def _now(owners: list[dict[str, Any]]) -> list[tuple[str, ...]]:
        return list(map(tuple, map(_children, owners)))

    def holds(self) -> bool:
        return self._now(self._owners) == self._keys


class _Same:
    """Classes and contents, dicts in their order. A module's dict of children or weights that was replaced by an equal one is seen once
    it is not."""

    __slots__ = ("_copies", "_dicts", "_items", "_orders", "_owners", "_sequences", "_things", "_types", "_versions")

    def __init__(self, *, types: list[Any], owners: list[Any], dicts: list[Any], orders: _Orders, sequences: list[Any]) -> None:
        """`owners`: things whose own attributes are compared. `orders`: of children, where what holds them was written to."""
        self._things, self._types = types, list(map(type, types))
        self._owners, self._dicts, self._orders = owners, dicts, orders
        self._versions = self._now()
        self._copies = [dict(found) for found in self._all()]
        self._sequences, self._items = sequences, [found.copy() for found in sequences]

    def _all(self) -> list[dict[Any, Any]]:
        return [*map(_attributes, self._owners), *self._dicts]

    def _now(self) -> list[int]:
        """A number for each state of each dict: no two states of any have the same one, nor have two dicts."""
        return [*map(dict_version, map(_attributes, self._owners)), *map(dict_version, self._dicts)]

    def holds(self) -> bool:
        now = self._now()
        same = now == self._versions or self._equal(now)
        return same and list(map(type, self._things)) == self._types and self._sequences == self._items

    def _equal(self, now: list[int]) -> bool:
        """Whether those that were written to came to the same; a next look knows of those that hold the very same things: an equal one
        may change by itself."""
        every = self._all()
        for place, (version, before) in enumerate(zip(now, self._versions, strict=True)):
            if version != before:
                found, copy = every[place], self._copies[place]
                if found != copy or list(found) != list(copy):
                    return False
                if all(map(is_, found.values(), map(copy.__getitem__, found))):
                    self._versions[place] = version
        return self._orders.holds()


class _None:
    """Hooks, children of leaves, weights of most others: of all there are none, but for the hooks of a collector."""

    __slots__ = ("_empty",)

    def __init__(self, empty: list[Any]) -> None:
        self._empty = empty

    def holds(self) -> bool:
        return not any(self._empty)


class _Lengths:
    """How many weights each module has that has any: which they are is looked up at every call."""

    __slots__ = ("_dicts", "_lengths")

    def __init__(self, dicts: list[Any]) -> None:
        self._dicts, self._lengths = dicts, list(map(len, dicts))

    def holds(self) -> bool:
        return list(map(len, self._dicts)) == self._lengths


class _Code:
    """Functions, what their closures hold, what names lead to, and that no class got a name that it had not."""

    __slots__ = ("_cells", "_contents", "_functions", "_keys", "_kinds", "_lengths", "_mros", "_ran", "_spaces", "_values", "_wide")

    def __init__(self, functions: list[Any], cells: list[Any], places: list[tuple[Any, str]], wide: list[Any], kinds: list[type]) -> None:
        self._functions, self._ran = functions, list(map(_of_function, functions))
        self._cells, self._contents = cells, list(map(_of_cell, cells))
        self._spaces, self._keys = [space for space, _ in places], [name for _, name in places]
        self._values = list(map(getitem, self._spaces, self._keys))
        self._wide, self._lengths = wide, list(map(len, wide))
        self._kinds, self._mros = kinds, [kind.__mro__ for kind in kinds]

    def holds(self) -> bool:
        return (
            list(map(getitem, self._spaces, self._keys)) == self._values
            and list(map(_of_function, self._functions)) == self._ran
            and list(map(_of_cell, self._cells)) == self._contents
            and list(map(len, self._wide)) == self._lengths
            and [kind.__mro__ for kind in self._kinds] == self._mros
        )


class _Kept:
    """Tensors that are no weights, whose numbers a graph has inside; and attributes in slots."""

    __slots__ = ("_numbers", "_slots", "_tensors", "_values", "_versions")

    def __init__(self, tensors: list[torch.Tensor], slots: list[tuple[Any, str]]) -> None:
        self._tensors, self._slots = tensors, slots
        self._versions = list(map(_version, tensors))
        self._numbers = [tensor.clone() if tensor.is_inference() else None for tensor in tensors]
        self._values = [getattr(found, name) for found, name in slots]

    def holds(self) -> bool:
        return (
            list(map(_version, self._tensors)) == self._versions
            and all(numbers is None or torch.equal(numbers, now) for numbers, now in zip(self._numbers, self._tensors, strict=True))
            and [getattr(found, name) for found, name in self._slots] == self._values
        )


def _version(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Changes when it is written to or given other memory; what was made under inference mode is not counted by torch."""
    return tensor.data_ptr(), tensor.shape, tensor.dtype, -1 if tensor.is_inference() else tensor._version


def _of_kind(kind: Any, values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, kind)]


def _kinds(modules: list[nn.Module], met: Met) -> list[type]:
    return list({type(found): None for found in [*modules, *met.objects]})


def _functions(code: TracedCode) -> Iterator[types.FunctionType]:
    for name in code.functions:
        yield from functions_in(stands_at(name))


def _places(code: TracedCode, kinds: Iterable[type]) -> list[tuple[Any, str]]:
    """The namespaces, and the names in them, that lead to what was traced and to what it reads."""
    found: dict[tuple[int, str], tuple[Any, str]] = {}

    def add(space: Any, name: str) -> None:
        found.setdefault((id(space), name), (space, name))

    read_kinds = []
    for name in [*code.functions, *code.globals]:
        module, _, chain = name.partition(":")
        here: Any = sys.modules.get(module)
        for part in chain.split("."):
            space = _space(here, part)
            if space is None:
                break
            add(space, part)
            here = space[part]
        if isinstance(here, type):
            read_kinds.append(here)
    names = frozenset(code.names)
    for base in {base: None for kind in [*kinds, *read_kinds] for base in kind.__mro__ if base is not object}:
        own = vars(base)
        for name in names.intersection(own):
            add(own, name)
    return list(found.values())


def _space(here: Any, name: str) -> Any:
    """The namespace of a module or class in which `name` is; None where it is in none."""
    spaces = [vars(base) for base in here.__mro__] if isinstance(here, type) else [vars(here)] if isinstance(here, types.ModuleType) else []
    return next((space for space in spaces if contains(space, name)), None)
