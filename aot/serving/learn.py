"""Learn: calls that no graph served are written down as a Record, from which `aot build` builds: misses become builds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aot.artifact.ledger import Ledger, log
from aot.cache_store.exclusive import exclusive
from aot.errors import BadInput
from aot.model.attention import active, others
from aot.model.capture import dtype_of
from aot.model.convention import Convention
from aot.model.recorder import RecordedCall
from aot.model.signature import Signature
from aot.request.described import described
from aot.request.merged import merged
from aot.request.record import Record
from aot.request.saved import read, write
from aot.serving.held import on_restore

_MOST = 100  # distinct calls that one process writes down: a server whose every call differs would write for ever


class Learner:
    """Keeps the Record at `path`, of what a pipeline's components are asked for and have no graph for. What they are is described as
    it is made, before anything stands in their place. Processes that learn into one file take turns.

    Raises BadInput for a path that cannot be written to, or that holds another pipeline's Record or something else; Unsupported for
    a model that has no config.
    """

    def __init__(self, path: str | Path, pipe: Any, modules: Mapping[str, nn.Module], *, fused: bool) -> None:
        self.path = Path(path).absolute()
        if not self.path.parent.is_dir():
            raise BadInput(f"learn: there is no folder {self.path.parent}.", remedy="make it, or name another file.")
        roots = {name: getattr(pipe, name) for name in {place.partition(".")[0] for place in modules}}
        self._about = described(Record.named(pipe, modules=dict(modules), roots=roots))
        for root in self._about["roots"].values():
            root["state"] = ["fuse_qkv"] if fused else []
        self._known: set[tuple[str, Signature, torch.dtype]] = set()
        self._turn = threading.Lock()
        if self.path.exists():
            self._before()

    def watch(self, path: str, module: nn.Module, ledger: Ledger) -> None:
        """From now on until `restore`, write down each new call of a component that a graph did not serve."""
        began = threading.local()

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            began.misses, began.call = ledger.missed_calls, (args, kwargs)

        def after(made: nn.Module, _args: Any, _kwargs: Any, result: Any) -> None:
            args, kwargs = began.__dict__.pop("call", ((), {}))  # let go of, whatever became of the call
            if result is not None and (path in ledger.unserved or ledger.missed_calls != began.misses):
                self._learn(path, made, args, kwargs)

        # a root's own hooks run around whatever stands for its forward
        hooks = (
            module.register_forward_pre_hook(_Hook(before), with_kwargs=True, prepend=True),
            module.register_forward_hook(_Hook(after), with_kwargs=True, always_call=True),
        )
        for hook in hooks:
            on_restore(module, lambda _, hook=hook: hook.remove())  # type: ignore[misc]

    def _learn(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Whatever goes wrong with writing is no affair of the call's: it is logged."""
        try:
            signature, _ = Signature.of(*Convention(type(module).forward.__get__(module)).canonical(args, kwargs))
            key = path, signature, dtype_of(module)
            with self._turn:
                if key in self._known or len(self._known) >= _MOST:
                    return
                self._known.add(key)
                self._add(RecordedCall(*key))
            log.info("%s: %s is learned; `aot build %s` builds it", path, signature, self.path)
        except Exception as error:  # noqa: BLE001
            log.warning("%s: a call could not be learned: %s", path, error)

    def _add(self, call: RecordedCall) -> None:
        one = {**self._about, "calls": [call.to_json()], **({"attention": found} if (found := others([active()])) else {})}
        with exclusive(self.path.with_name(f".{self.path.name}.lock")) as alone:
            if not alone:  # two that write at once could leave a file that is neither's
                raise OSError(f"the disk of {self.path} has no locks")
            (value,) = merged([self._before(), one]) if self.path.exists() else [one]
            used = {call["component"] for call in value["calls"]}
            roots = {name for name in value["roots"] if any(place.partition(".")[0] == name for place in used)}
            kept = {"components": used, "roots": roots}
            write({**value, **{field: {name: value[field][name] for name in names} for field, names in kept.items()}}, self.path)

    def _before(self) -> dict[str, Any]:
        """What the file holds, as if this process had written it. Raises BadInput where that is of another pipeline."""
        there = read(self.path)
        about = self._about
        same = there.get("name") == about["name"] and all(about["roots"].get(name) == root for name, root in there.get("roots", {}).items())
        if not same:
            raise BadInput(f"learn: {self.path} is the Record of another pipeline.", remedy="name another file, or remove it.")
        return {**there, **{field: about[field] for field in ("roots", "components", "versions")}}


class _Hook:
    """Runs a function; in a copy of the module too, and pickled it does nothing."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> None:
        self._run(*args)

    def __deepcopy__(self, _: dict[int, Any]) -> _Hook:
        return self

    def __reduce__(self) -> Any:
        return _Hook, (_nothing,)


def _nothing(*_: Any) -> None: ...
