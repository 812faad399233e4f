"""Jit: ordinary compilation, with an artifact's cache layer unpacked first so that it runs warm."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aot.artifact import CACHE, unpack
from aot.environment import INDUCTOR_DIRECTORY
from aot.inductor import jit
from aot.ledger import Ledger
from aot.options import Options
from aot.resolve import set_aside
from cache_store.errors import CodedError
from cache_store.store import Store
from cache_store.trust import Admitted


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
        return jit(function, self.options)

    def _unpack(self) -> None:
        layers = [(artifact, layer) for artifact in self.artifacts if (layer := artifact.manifest.layer(CACHE))]
        if not layers:
            return
        directory = _inductor_directory()
        for artifact, layer in layers:
            try:
                unpack(self.store, artifact, layer=layer, into=directory, ledger=self.ledger)
            except CodedError as error:
                set_aside(self.store, error)


def _inductor_directory() -> Path:
    """The user's TORCHINDUCTOR_CACHE_DIR, else one of this process's own that Inductor is pointed to until the process ends."""
    if not os.environ.get(INDUCTOR_DIRECTORY):
        os.environ[INDUCTOR_DIRECTORY] = tempfile.mkdtemp(prefix="aot-inductor-")
        atexit.register(shutil.rmtree, os.environ[INDUCTOR_DIRECTORY], ignore_errors=True)
    return Path(os.environ[INDUCTOR_DIRECTORY])
