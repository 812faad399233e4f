"""Recorder: which modules a pipeline calls, and how, found by watching it: the outermost calls of modules that have children."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import nn
from torch._subclasses.fake_tensor import (  # checked on torch 2.11.0, 2.13.0 and 2.15.0
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from aot.errors import Unsupported
from aot.model.attention import active
from aot.model.capture import BlockCall, FakeRun, dtype_of, fake_run, modules_of
from aot.model.convention import Convention, Written
from aot.model.signature import Signature, dtype_named
from aot.model.words import weight_word

_READS_DATA = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One way in which a component was called: with weights of that `dtype`, so many times.

    Of a component that is glue, how it called what is in it.
    """

    component: str
    signature: Signature
    dtype: torch.dtype
    count: int = 1
    blocks: tuple[BlockCall, ...] = ()
    written: tuple[Written, ...] = field(default=(), compare=False)  # every way in which it was, of those that are known

    def to_json(self) -> dict[str, Any]:
        blocks = [[block.path, block.signature.to_json(), _told(block.written)] for block in self.blocks]
        dtype = str(self.dtype).removeprefix("torch.")
        written = list(map(_told, self.written))
        about = {"component": self.component, "signature": self.signature.to_json(), "dtype": dtype, "count": self.count}
        return {**about, "blocks": blocks, "written": written}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        # what earlier versions wrote does not say how calls were written
        blocks = tuple(BlockCall(path, Signature.from_json(signature), *map(_read, more)) for path, signature, *more in value["blocks"])
        dtype = dtype_named(value["dtype"])
        written = tuple(way for way in map(_read, value.get("written", ())) if way)
        return cls(value["component"], Signature.from_json(value["signature"]), dtype, value["count"], blocks, written)


def _told(written: Written | None) -> list[Any] | None:
    return written and [written[0], list(written[1])]


def _read(value: Any) -> Written | None:
    return value and (int(value[0]), tuple(map(str, value[1])))


class Recorder:
    """Writes down the calls of what `owner`, a pipeline or a module, is made of.

    `modules` are the components that were called, by dotted path; `left` those whose calls have no identity, and why. A module
    that asks a tensor for its numbers is glue: it runs, and the calls of what is in it are written down with its own. Either
    everything `computes` and is only watched, or a call is answered with zeros of the right shapes, after one run on fakes:
    then no weight needs to be there.
    """

    def __init__(self, owner: Any, *, computes: bool = False) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.left: dict[str, str] = {}
        self._calls: dict[tuple[str, Signature, torch.dtype], RecordedCall] = {}
        self._runs: dict[tuple[str, Signature, torch.dtype], FakeRun] = {}
        self.attention: set[str] = set()  # the backends that were active when components were called
        self._glue: set[str] = set()
        self._computes = computes
        self._here = _Here()
        self.look(owner)

    def look(self, owner: Any) -> None:
        """Look again at what the pipeline is made of: parts are replaced, and adapters come."""
        self._paths = {id(module): path for path, module in reversed(list(submodules(owner)))}  # the first path of each

    def count_anew(self) -> None:
        """From now on calls are counted from none: those up to here were another process's."""
        self._calls = {key: replace(call, count=0) for key, call in self._calls.items()}

    @property
    def calls(self) -> list[RecordedCall]:
        """In the order in which they first came."""
        return [call for call in self._calls.values() if call.component not in self.left]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, calls are written down. Calls of other pipelines pass through; others may be watched meanwhile, in other threads."""
        _watch(self)
        try:
            yield
        finally:
            _leave(self)

    def path_of(self, module: nn.Module) -> str | None:
        """Where the module is, if a call of it now would be an outermost one."""
        return self._paths.get(id(module)) if module._modules and not self._here.inside else None

    def outermost(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]) -> Any:
        if path in self.left:
            return self._through(run)
        ran, written = None, (len(args), tuple(kwargs))
        try:  # nothing of the program's own runs in here: what it raises is its affair
            args, kwargs = Convention(module.forward).canonical(args, kwargs)
            signature, tensors = Signature.of(args, kwargs)
            if path not in self._glue:
                ran = self._ran(path, module, signature, tensors)
        except Unsupported as error:
            self.left[path] = error.message
            return self._through(run)
        except _READS_DATA:
            self._glue.add(path)
        except Exception as error:
            if not self._computes:
                raise
            self.left[path] = f"it cannot be run without data: {type(error).__name__}: {error}"  # it computes all the same
            return self._through(run)
        if ran is None:
            return self._run_glue(path, module, signature, written, run)
        self._note(path, module, signature, written)
        return self._through(run) if self._computes else ran.answer(args, kwargs)

    def _note(self, path: str, module: nn.Module, signature: Signature, written: Written, blocks: tuple[BlockCall, ...] = ()) -> None:
        self.attention.add(active())
        if self._here.glue is not None:
            around, found = self._here.glue
            found.append(BlockCall(path.removeprefix(f"{around}."), signature, written))
            return
        self.modules[path] = module
        key = path, signature, dtype_of(module)
        known = self._calls.get(key, RecordedCall(*key, count=0))
        blocks, ways = tuple(dict.fromkeys([*known.blocks, *blocks])), tuple(dict.fromkeys([*known.written, written]))
        self._calls[key] = replace(known, count=known.count + 1, blocks=blocks, written=ways)

    def _run_glue(self, path: str, module: nn.Module, signature: Signature, written: Written, run: Callable[[], Any]) -> Any:
        if self._here.glue is not None:  # within other glue, which has the calls
            return run()
        found: list[BlockCall] = []
        self._here.glue = path, found
        try:
            returned = run()
        finally:
            self._here.glue = None
        self._note(path, module, signature, written, tuple(found))
        return returned

    def _ran(self, path: str, module: nn.Module, signature: Signature, tensors: list[torch.Tensor]) -> FakeRun:
        """The run on fakes of a call like this one, which the first of them costs."""
        key = path, signature, dtype_of(module)
        if key not in self._runs:
            for name, weight in module.named_parameters():
                try:
                    weight_word(weight, fakes=True)
                except Unsupported as error:  # bitsandbytes': a run on fakes would lose what they are
                    raise Unsupported(f"weight {name}: {error.message}") from error
            self._runs[key] = self._through(lambda: fake_run(module, signature, tensors))
        return self._runs[key]

    def _through(self, run: Callable[[], Any]) -> Any:
        """Run what is inside of a component: none of its own calls is an outermost one."""
        self._here.inside = True
        try:
            return run()
        finally:
            self._here.inside = False


class _Here(threading.local):
    """Where a thread is: inside of a component, or in glue, whose path and calls these are."""

    inside = False
    glue: tuple[str, list[BlockCall]] | None = None


_watching: list[Recorder] = []
_changing = threading.Lock()
_original = nn.Module.__call__


def _call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """In the place of every module's call, for as long as anybody watches."""
    for recorder in reversed(_watching):
        if (path := recorder.path_of(module)) is not None:
            return recorder.outermost(path, module, args, kwargs, lambda: _original(module, *args, **kwargs))
    return _original(module, *args, **kwargs)


def _watch(recorder: Recorder) -> None:
    global _original  # noqa: PLW0603 - whatever stands there when the first begins
    with _changing:
        if not _watching:
            _original = nn.Module.__call__
            nn.Module.__call__ = _call  # type: ignore[method-assign]
        _watching.append(recorder)


def _leave(recorder: Recorder) -> None:
    with _changing:
        _watching.remove(recorder)
        if not _watching:
            nn.Module.__call__ = _original  # type: ignore[method-assign]


def submodules(owner: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every module that `owner` holds, by dotted path: a pipeline's components and what is in them, or those of a module itself."""
    for name, part in roots_of(owner).items():
        for inner, module in part.named_modules():
            yield f"{name}.{inner}".rstrip("."), module


def roots_of(owner: Any) -> dict[str, nn.Module]:
    """The modules that `owner` is made of, by name; a module is one itself."""
    return {"module": owner} if isinstance(owner, nn.Module) else modules_of(owner)
