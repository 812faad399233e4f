"""Jit: ordinary compilation, with an artifact's cache layer unpacked first so that it runs warm."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from aot.artifact.kinds import CACHE
from aot.artifact.ledger import Ledger, log
from aot.artifact.opened import unpack
from aot.cache_store.errors import CodedError
from aot.cache_store.store import Store
from aot.cache_store.trust import Admitted
from aot.compiler.inductor import jit
from aot.environment import INDUCTOR_DIRECTORY
from aot.errors import BuildFailed, first_line
from aot.request.options import Options
from aot.serving.resolve import set_aside


@dataclass(slots=True)
class Jit:
    """Compiles as `options` say. The cache layers are unpacked once, at the first compilation: most processes need none."""

    options: Options
    store: Store
    artifacts: list[Admitted]
    ledger: Ledger
    _warm: bool = field(default=False, init=False)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled `function`; compilation itself runs at its first call."""
        if not self._warm:
            self._unpack()
            self._warm = True
        return rescued(lambda: _with_hooks(jit(function, self.options)), function)

    def _unpack(self) -> None:
        layers = [(artifact, layer) for artifact in self.artifacts if (layer := artifact.manifest.layer(CACHE))]
        if not layers:
            return
        try:
            directory = _inductor_directory()
        except OSError as error:  # the compiler will say more
            log.warning("the cache layer cannot be unpacked: %s", error)
            return
        for artifact, layer in layers:
            try:
                unpack(self.store, artifact, layer=layer, into=directory, ledger=self.ledger)
            except CodedError as error:
                set_aside(self.store, error)


def _with_hooks(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Guarded by the hooks of submodules too, which torch.compile leaves out: one that is added later would not run."""

    @wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            return compiled(*args, **kwargs)

    return call


def rescued(compile: Callable[[], Callable[..., Any]], plain: Callable[..., Any]) -> Callable[..., Any]:
    """What `compile` makes, and `plain` in its place once the compiler failed: no compiler here, a full disk, a read-only one.

    What `plain` raises too is the caller's own error, and goes to the caller.
    """
    try:
        compiled = compile()
    except OSError as error:  # torch makes its cache directory at once
        say_given_up(error)
        return plain
    given_up = False

    @wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal given_up
        if given_up:
            return plain(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except torch.OutOfMemoryError:  # says nothing of the compiler, and may pass
            raise
        except (OSError, RuntimeError) as error:  # every error of torch's compiler is a RuntimeError
            result = plain(*args, **kwargs)
            given_up = True
            say_given_up(error)
            return result

    return call


def say_given_up(error: Exception) -> None:
    log.warning("%s compilation failed, running eagerly from now on: %s", BuildFailed.code, first_line(error))


def _inductor_directory() -> Path:
    """The user's TORCHINDUCTOR_CACHE_DIR, else one of this process's own that Inductor is pointed to until the process ends."""
    if not os.environ.get(INDUCTOR_DIRECTORY):
        os.environ[INDUCTOR_DIRECTORY] = tempfile.mkdtemp(prefix="aot-inductor-")
        atexit.register(shutil.rmtree, os.environ[INDUCTOR_DIRECTORY], ignore_errors=True)
    return Path(os.environ[INDUCTOR_DIRECTORY])
