"""Reproduced: whether a model whose code was changed since it was traced still answers what its graphs did at their build."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from aot.artifact.book import Book
from aot.artifact.cudagraph import Run
from aot.artifact.golden import Golden, eager
from aot.artifact.ledger import log
from aot.cache_store.manifest import Manifest
from aot.model.slots import slotted_twin
from aot.serving.canary import allowed_error


@dataclass(frozen=True, slots=True)
class Reproduced:
    """Compares a live model, run eagerly on golden inputs, with an artifact's golden outputs."""

    manifest: Manifest

    def by(self, module: nn.Module, component: str, book: Book, golden: Golden | None) -> bool:
        """Whether `module` answers every golden input of the component's graphs within tolerance; its code is then that of the
        book's kinds. Never where a difference is not in the functions themselves: what is patched or read is no new release.
        """
        places = [place for place, entry in enumerate(book.graphs) if entry.component == component]
        kinds = {book.graphs[place].kind: module.get_submodule(book.graphs[place].paths[0]) for place in places}
        adopted = {kind: replace(book.kinds[kind], code=book.kinds[kind].code.adopted()) for kind in kinds}
        if golden is None or any(adopted[kind].code.differs(inner) for kind, inner in kinds.items()):
            return False
        if not self._error(module, places, book, golden) <= allowed_error(self.manifest):
            return False
        book.kinds.update(adopted)
        return True

    def _error(self, module: nn.Module, places: list[int], book: Book, golden: Golden) -> float:
        entries = [book.graphs[place] for place in places]
        if any(entry.frozen for entry in entries):
            return math.inf  # its weights are inside, and golden inputs are none
        part = replace(book, graphs=tuple(entries))
        runs: dict[str, Run] = {
            entry.file: partial(
                eager, slotted_twin(module.get_submodule(entry.paths[0]), entry.slots), [name for name, _ in book.inputs(entry)], entry
            )
            for entry in entries
        }
        try:
            with torch.no_grad():
                return golden.error(part, runs)
        except Exception as error:  # noqa: BLE001 - code that cannot even be called so is another
            log.info("golden outputs could not be asked of the model: %s", error)
            return math.inf
