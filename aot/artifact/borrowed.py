"""Borrowed: a package that others made, as a graph of this process: weights bound by name, inputs in the order of its own call.

Private names of torch, checked on 2.14.1: `update_constant_buffer` and `get_constant_names_to_original_fqns` of the runners.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
import weakref
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from aot.artifact.book import GraphEntry
from aot.artifact.packaged import Packaged
from aot.artifact.runner import Graph, open_runner
from aot.errors import LoadFailed, Unsupported, first_line
from aot.model.convention import Convention, Written
from aot.model.signature import Signature

_TORCH = ("aoti_", "torch_", "_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at", "_ZNK3c10", "_ZNK5torch")
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")
_LEAF = None


def unanswered(needs: Collection[str]) -> list[str]:
    """What of these symbols no library of this torch has."""
    libraries = _torch_libraries()
    return sorted(name for name in needs if name.startswith(_TORCH) and not any(hasattr(library, name) for library in libraries))


@cache
def _torch_libraries() -> tuple[ctypes.CDLL, ...]:
    folder = Path(torch.__file__).parent / "lib"
    return tuple(ctypes.CDLL(str(folder / name)) for name in _LIBRARIES if (folder / name).exists())


class BorrowedLibrary:
    """One package's library, open in this process, its weights those that it was last given."""

    def __init__(self, packaged: Packaged, device: torch.device) -> None:
        """Raises LoadFailed when this process cannot open it, or it is not what its source says."""
        self.packaged, self.device = packaged, device
        self._lock, self._pointers, self._held = Lock(), list[int](), list[torch.Tensor]()
        directory = Path(tempfile.mkdtemp(prefix="aot-package-"))
        try:
            for name, data in packaged.files.items():
                (directory / name).write_bytes(data)
            self._runner = open_runner(directory / packaged.library, device, cubins=str(directory))
            names = {fqn: name for name, fqn in self._runner.get_constant_names_to_original_fqns().items()}
            call, returns = self._runner.get_call_spec()
            said = json.loads(call), json.loads(returns)
            if said != (packaged.call, packaged.returns) or dict(packaged.weights).keys() - names.keys():
                raise LoadFailed("the package's library is not what its source says.")
            self._names = [names[fqn] for fqn, _ in packaged.weights]
        except (RuntimeError, ValueError) as error:
            raise LoadFailed(f"the package could not be opened: {first_line(error)}.", remedy="ask its author.") from error
        finally:
            if any(name.endswith(".cubin") for name in packaged.files):  # these are read when they are first launched
                weakref.finalize(self, shutil.rmtree, directory, ignore_errors=True)
            else:
                shutil.rmtree(directory, ignore_errors=True)

    def run(self, weights: list[torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Blocks of one class take turns, each with its own weights: these are bound again where they are others."""
        pointers = [weight.data_ptr() for weight in weights]
        with self._lock:
            if pointers != self._pointers:
                bound = dict(zip(self._names, weights, strict=True))
                self._runner.update_constant_buffer(bound, False, True, True)
                self._pointers, self._held = pointers, weights  # nobody else keeps what they point to
            found: list[torch.Tensor] = self._runner.run(inputs)
            return found

    def __deepcopy__(self, _: dict[int, Any]) -> BorrowedLibrary:
        """Shared: a copy of a model binds its own weights at each of its calls."""
        return self


class Borrowed(Graph):
    """A package for calls of one signature."""

    __slots__ = ("_borrowed", "_order", "_weights")

    def __init__(self, entry: GraphEntry, library: BorrowedLibrary, order: Sequence[int]) -> None:
        """`order`: for each of its inputs the place among the tensors of the signature."""
        self.entry, self.hits, self.device, self.writes = entry, 0, library.device, False
        self.launches_first = library.device.type == "cuda"
        self._borrowed, self._order, self._weights = library, order, len(library.packaged.weights)
        self.run_flat = self._run

    def _run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        inputs = tensors[self._weights :]
        return self._borrowed.run(tensors[: self._weights], [inputs[place] for place in self._order])


def order_of(packaged: Packaged, signature: Signature, convention: Convention) -> list[int]:
    """For each input of a package, its place among the tensors of a call of that signature. Raises Unsupported for a call that the
    package is not made for, in words."""
    written, children = _written(packaged.call)
    marks = [torch.empty(0) for _ in signature.specs]
    try:
        args, kwargs = convention.written(*signature.call(marks), written)
    except KeyError as error:
        raise Unsupported(f"the package is called with {error.args[0]}, which the module's forward does not take.") from error
    if len(args) < written[0]:
        raise Unsupported(f"the package is called with {written[0]} arguments by place, and the module's forward takes {len(args)}.")
    found: list[torch.Tensor] = []
    for value, spec in zip([*args, *kwargs.values()], children, strict=True):
        _take(value, spec, found)
    if left := {id(mark) for mark in marks} - {id(mark) for mark in found}:
        names = [name for (name, _), mark in zip(signature.named(), marks, strict=True) if id(mark) in left]
        raise Unsupported(f"{names[0]} is a tensor, which the package was not made with.")
    if len(found) != len(packaged.inputs):
        raise Unsupported(f"the call has {len(found)} tensors, and the package takes {len(packaged.inputs)}.")
    places = {id(mark): place for place, mark in enumerate(marks)}
    order = [places[id(mark)] for mark in found]
    named = signature.named()
    for place, given in zip(order, packaged.inputs, strict=True):
        name, spec = named[place]
        if reason := given.refuses(spec):
            raise Unsupported(f"{name}.{reason}.")
    return order


def _written(call: Any) -> tuple[Written, list[Any]]:
    """How torch's words for a call say that it is written, and the structure of each argument."""
    try:
        args, kwargs = call[1]["children_spec"]
        names = tuple(json.loads(kwargs["context"])) if kwargs["children_spec"] else ()
        return (len(args["children_spec"]), names), [*args["children_spec"], *kwargs["children_spec"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unsupported("the package does not say how it is called.") from error


def _take(value: Any, spec: Any, found: list[torch.Tensor]) -> None:
    """The tensors of an argument in the package's order. Raises Unsupported where it has another structure."""
    children = spec["children_spec"]
    if spec["type"] is _LEAF:
        if isinstance(value, tuple | list | dict):
            raise Unsupported(f"the call gives a {type(value).__name__} where the package was made with one value.")
        if isinstance(value, torch.Tensor):
            found.append(value)
        return
    if isinstance(value, dict):
        names = json.loads(spec["context"])
        if not isinstance(names, list) or {*names} != {*value}:
            raise Unsupported("the call gives a dict of other names than the package was made with.")
        items = [value[name] for name in names]
    elif isinstance(value, tuple | list) and spec["type"] == f"builtins.{type(value).__name__}":
        items = list(value)
    else:
        raise Unsupported(f"the call gives {type(value).__name__} where the package was made with {spec['type']}.")
    if len(items) != len(children):
        raise Unsupported(f"the call gives {len(items)} values where the package was made with {len(children)}.")
    for item, child in zip(items, children, strict=True):
        _take(item, child, found)
