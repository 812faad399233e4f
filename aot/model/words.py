"""Words: a value that tracing could bake into a graph, described exactly. What cannot be described is refused by name."""

from __future__ import annotations

import functools
import logging
import re
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from aot.cache_store.digest import Digest
from aot.errors import Unsupported
from aot.model.attributes import NOTES, own_attributes
from aot.model.functions import code_digest, is_named, name_of
from aot.model.signature import TensorSpec
from aot.model.wrapped import PACKED, inner, is_packed, is_wrapped, taken_apart

PLAIN_TENSORS = (torch.Tensor, nn.Parameter)
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by Python code, whose state is all in its attributes

_Spell: TypeAlias = Callable[["Words", Any], str]


@dataclass(slots=True)
class Met:
    """The mutable things that were described: what a seal has to look at again."""

    objects: list[Any] = field(default_factory=list)  # with attributes of their own, modules aside
    dicts: list[dict[Any, Any]] = field(default_factory=list)
    sequences: list[Any] = field(default_factory=list)  # lists and sets
    slots: list[tuple[Any, str]] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    functions: list[types.FunctionType] = field(default_factory=list)


class Words:
    """Spells values. Those of one module share an instance, which knows what it met before: cycles end, sharing is seen.

    Tuples and lists of equal items are one word: a config that went through JSON has lists. `paths` are the submodules' own.
    With `codes` a function that no name leads to is spelled with a digest of its bytecode.
    """

    def __init__(self, paths: dict[int, str] | None = None, *, codes: bool = True) -> None:
        self.met = Met()
        self._paths, self._codes = paths or {}, codes
        self._known: dict[int, str] = {}

    def of(self, value: Any, name: str = "") -> str:
        """One word, without blanks. Raises Unsupported for what has no exact description."""
        return ";".join(self.spell(name, value)).replace(" ", "\u00b7")

    def spell(self, name: str, value: Any) -> Iterator[str]:
        """`name=value`, and one such word for each attribute below it, so that a difference is named closely."""
        if type(value) in _SHORT:
            yield _is(name, repr(value))
        elif isinstance(value, Enum):
            yield _is(name, f"{class_name(type(value))}.{value.name}")
        elif name and isinstance(value, dict) and all(isinstance(key, str) for key in value) and id(value) not in self._known:
            yield from self._entries(name, value)
        elif handler := next((found for kind in type(value).__mro__ if (found := _HANDLERS.get(kind))), None):
            yield _is(name, handler(self, value))
        elif type(value).__module__ == "numpy":
            yield _is(name, _numpy(value))
        elif (plain := _stood_for(value)) is not None:
            yield from self.spell(name, plain)
        else:
            yield from self._attributes(name, value)

    def _entries(self, name: str, value: dict[str, Any]) -> Iterator[str]:
        """A dict by its entries, in its order; diffusers' own config has that of the arguments somebody gave."""
        self._known[id(value)] = name
        self.met.dicts.append(value)
        config = type(value).__name__ == "FrozenDict"
        yield f"{name}={'{}' if config or type(value) in (dict, OrderedDict) else class_name(type(value))}"
        for key in sorted(value.keys() - NOTES) if config else [key for key in value if key not in NOTES]:
            yield from self.spell(f"{name}.{key}", value[key])
        if extra := self._extra(value):
            yield f"{name}{extra}"

    def _attributes(self, name: str, value: Any) -> Iterator[str]:
        """An object of Python code: its class, and all its own attributes."""
        if first := self._known.get(id(value)):
            yield _is(name, f"@{first}")
            return
        kind = type(value)
        slots = [slot for base in kind.__mro__ for slot in _slots(base) if hasattr(value, slot)]
        own = getattr(value, "__dict__", None)
        if (own is None and not slots and kind is not object) or not all(base is object or base.__flags__ & _HEAP for base in kind.__mro__):
            raise Unsupported(f"{name or 'it'} is a {class_name(kind)}, whose state cannot be read.")
        self._known[id(value)] = name or "it"
        self.met.objects.append(value)
        self.met.slots += [(value, slot) for slot in slots]
        yield _is(name, self.class_word(kind))
        inner = {**{slot: getattr(value, slot) for slot in slots}, **(own or {})}
        for key in sorted(inner.keys() - NOTES):
            yield from self.spell(f"{name}.{key}", inner[key])

    def class_word(self, kind: type) -> str:
        """Its name; with the code of its methods where no name leads to it."""
        if not self._codes or is_named(kind):
            return class_name(kind)
        own = [(name, member) for name, member in sorted(vars(kind).items()) if isinstance(member, types.FunctionType)]
        return f"{class_name(kind)}({Digest.of(repr([(name, code_digest(member.__code__)) for name, member in own]).encode()).short})"

    def _sequence(self, value: Any) -> str:
        if isinstance(value, list):
            self.met.sequences.append(value)
        kind = type(value)
        prefix = "" if kind in (list, tuple, torch.Size) else class_name(kind)
        return f"{prefix}[{','.join(map(self.of, value))}]{self._extra(value)}"

    def _set(self, value: Any) -> str:
        self.met.sequences.append(value)
        return "{" + ",".join(sorted(map(self.of, value))) + "}"

    def _dict(self, value: Any) -> str:
        if first := self._known.get(id(value)):
            return f"@{first}"
        self._known[id(value)] = f"dict{len(self._known)}"
        self.met.dicts.append(value)
        inner = [f"{self.of(key)}:{self.of(item)}" for key, item in value.items()]
        prefix = "" if type(value) in (dict, OrderedDict) else class_name(type(value))
        return f"{prefix}{{{','.join(inner)}}}{self._extra(value)}"

    def _extra(self, value: Any) -> str:
        """The attributes of a container of a class of its own."""
        kept = {slot: getattr(value, slot) for base in type(value).__mro__ for slot in _slots(base) if hasattr(value, slot)}
        own = {**kept, **getattr(value, "__dict__", {})}
        if not own:
            return ""
        self.met.objects.append(value)
        self.met.slots += [(value, slot) for slot in kept]
        return "(" + ",".join(self.of(own[key], key) for key in sorted(own.keys() - NOTES - _live(value))) + ")"

    def _function(self, value: types.FunctionType) -> str:
        if first := self._known.get(id(value)):
            return f"@{first}"
        name = name_of(value)
        self._known[id(value)] = name
        self.met.functions.append(value)
        code = "" if not self._codes or is_named(value) else f"#{code_digest(value.__code__)}"
        cells = [self.of(cell.cell_contents, free) for free, cell in _cells(value)]
        defaults = self.of([value.__defaults__, value.__kwdefaults__]) if value.__defaults__ or value.__kwdefaults__ else ""
        return f"{name}{code}" + (f"({','.join(cells)}{defaults})" if cells or defaults else "")

    def _method(self, value: types.MethodType) -> str:
        return f"{self.of(value.__func__)}.of({self.of(value.__self__)})"

    def _builtin(self, value: Any) -> str:
        owner = getattr(value, "__self__", None)
        pybind = type(owner).__name__ == "PyCapsule" or type(owner).__module__ == "pybind11_builtins"  # of version 2; of 3, torch 2.11 on
        name = value.__name__ if pybind else value.__qualname__  # version 3 puts its own build's name into the qualified one
        bound = "" if pybind or owner is None or isinstance(owner, types.ModuleType | type) else f".of({self.of(owner)})"
        return f"builtin({getattr(value, '__module__', None) or ''}.{name}){bound}"

    def _partial(self, value: functools.partial[Any]) -> str:
        return f"partial({self.of(value.func)},{self.of([value.args, value.keywords])})"

    def _cached(self, value: Any) -> str:
        return f"cached({self.of(value.__wrapped__)})"

    def _module(self, value: nn.Module) -> str:
        if (path := self._paths.get(id(value))) is not None:
            return f"@{path or 'the module'}"
        if any(True for _ in (*value.parameters(), *value.buffers())):
            raise Unsupported(f"a {class_name(type(value))} is held outside of the module's children, and a graph would bake its weights.")
        own = own_attributes(value)
        children = [f"{key}:{self.of(child)}" for key, child in value._modules.items()]
        return f"{class_name(type(value))}({','.join(self.of(own[key], key) for key in sorted(own))};{','.join(children)})"

    def _tensor(self, value: torch.Tensor) -> str:
        """A tensor that is no weight: its very numbers would be in the graph."""
        if type(value) not in PLAIN_TENSORS or value.layout is not torch.strided:
            raise Unsupported(f"a {class_name(type(value))} is kept as an attribute, and its numbers cannot be read.")
        self.met.tensors.append(value)
        numbers = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"tensor({weight_word(value)},{Digest.of(numbers.tobytes()).short})"

    def _descriptor(self, value: Any) -> str:
        if isinstance(value, property):
            return f"property({self.of(value.fget)})"
        return f"{type(value).__name__}({self.of(value.__func__)})"


def class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def weight_word(tensor: torch.Tensor, *, fakes: bool = False) -> str:
    """What a graph knows of a weight: exact type, dtype, shape, strides, device type. Raises Unsupported.

    `fakes`: the tensors may be those of a device that is absent.
    """
    kind = type(tensor)
    if is_packed(tensor) or (kind not in PLAIN_TENSORS and not (fakes and isinstance(tensor, FakeTensor))):
        return _subclass_word(tensor, fakes=fakes)
    if tensor.layout is not torch.strided:
        raise Unsupported(f"a weight is {str(tensor.layout).removeprefix('torch.')}, and graphs take strided ones.")
    spec = TensorSpec.of(tensor)
    bits = "conj" * tensor.is_conj() + "neg" * tensor.is_neg()
    return f"{spec}{list(spec.stride)}@{spec.device}{bits}".replace(" ", "")


def _subclass_word(tensor: torch.Tensor, *, fakes: bool) -> str:
    """A tensor of another class by its inner tensors and its context, which is how torch's compiler takes it apart."""
    kind = PACKED if is_packed(tensor) else class_name(type(tensor))
    if not is_wrapped(tensor):
        raise Unsupported(f"a weight is a {kind}, which graphs do not take.")
    names, context = taken_apart(tensor)
    within = ",".join(f"{name}:{weight_word(inner(tensor, name), fakes=fakes)}" for name in names)
    return f"{kind}({Words().of(context)}){{{within}}}"


def _numpy(value: Any) -> str:
    if hasattr(value, "tobytes"):
        return f"numpy({value.dtype},{list(value.shape)},{Digest.of(value.tobytes()).short})"
    return f"numpy({type(value).__name__}.{getattr(value, '__name__', value)})"


def _is(name: str, word: str) -> str:
    return f"{name}={word}" if name else word


def _ours(value: Any) -> bool:
    return type(value).__module__.startswith("aot.")


def _live(value: Any) -> frozenset[str]:
    """The attributes of a container of ours that graphs take as inputs."""
    return frozenset(getattr(type(value), "live", ())) if _ours(value) else frozenset()


def _stood_for(value: Any) -> Any:
    """The forward that an object of ours stands for, where somebody else holds on to it: a hook that was added after loading."""
    return getattr(value, "plain", None) if _ours(value) else None


def _slots(kind: type) -> list[str]:
    slots = vars(kind).get("__slots__", ())
    named = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in named if name not in ("__dict__", "__weakref__")]


def _cells(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if free != "__class__" and cell != types.CellType():
            yield free, cell


_SHORT = (type(None), bool, int, float, str)  # nearly all there is


def _repr(_: Words, value: Any) -> str:
    return repr(value)


_HANDLERS: dict[type, _Spell] = {
    **dict.fromkeys((type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), range, slice, re.Pattern), _repr),
    **dict.fromkeys((torch.dtype, torch.layout, torch.memory_format, PurePath), lambda _, value: str(value)),
    torch.device: lambda _, value: f"device({value.type})",
    **dict.fromkeys((list, tuple), Words._sequence),
    **dict.fromkeys((set, frozenset), Words._set),
    **dict.fromkeys((dict, types.MappingProxyType), Words._dict),
    type: Words.class_word,
    types.FunctionType: Words._function,
    types.MethodType: Words._method,
    **dict.fromkeys(
        (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType), Words._builtin
    ),
    functools.partial: Words._partial,
    functools._lru_cache_wrapper: Words._cached,
    types.ModuleType: lambda _, value: f"module({value.__name__})",
    nn.Module: Words._module,
    torch.Tensor: Words._tensor,
    **dict.fromkeys((staticmethod, classmethod, property), Words._descriptor),
    logging.Logger: lambda _, __: "logger",
    weakref.ref: lambda words, value: f"ref({words.of(value())})",
    **dict.fromkeys((torch._ops.OpOverload, torch._ops.OpOverloadPacket), lambda _, value: str(value)),
}
