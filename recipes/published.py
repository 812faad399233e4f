"""Published: a row of `rows`, as what a build is made from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aot.choice import choice
from aot.recipes.row import Row
from aot.recipes.rows import FAMILIES
from aot.request.named import Named
from aot.request.origin import call_pipeline

if TYPE_CHECKING:
    from aot.request.record import Record


@dataclass(frozen=True, slots=True)
class Published(Named):
    """The pipeline `family` of the size `variant`, without weights, and its calls; with none, the row's own."""

    family: str
    variant: str = "full"
    calls: tuple[Mapping[str, Any], ...] = ()
    dtype: str = "float32"

    @property
    def own_name(self) -> str:
        """The artifact's."""
        return self.family

    def check(self) -> None:
        """Raises BadInput for a row that is none."""
        family = FAMILIES[choice(self.family, known=FAMILIES, field="recipe")]
        choice(self.variant, known=family.rows, field=f"--variant of {self.family}")

    def record(self, name: str = "") -> Record:
        """What the row's pipeline calls. Raises BadInput for a call that it does not take."""
        import torch

        from aot.request.record import record

        pipeline, row = self.pipeline(), self._row
        with record(pipeline, name=name or self.own_name) as found, torch.no_grad():
            for call in self.calls or ({},):
                call_pipeline(pipeline, {**row.call, **call}, self.dtype)
        return found

    def pipeline(self) -> Any:
        """The pipeline, its parameters without numbers, its text encoders left out."""
        import diffusers
        import torch
        from torch import nn

        from aot.model.unweighted import unweighted

        row, kind = self._row, getattr(diffusers, FAMILIES[self.family].pipeline)
        parts: dict[str, Any] = {}
        for part, (name, config) in row.parts.items():
            made, dtype = getattr(diffusers, name), getattr(torch, self.dtype)
            parts[part] = unweighted(made, config, dtype) if issubclass(made, nn.Module) else made.from_config(dict(config))
        asked = inspect.signature(kind.__init__).parameters
        absent = {part: None for part, found in asked.items() if found.default is found.empty and part not in ("self", *parts)}
        found = kind(**absent, **parts, **row.more)
        found.set_progress_bar_config(disable=True)
        return found

    @property
    def _row(self) -> Row:
        return FAMILIES[self.family].rows[self.variant]
