"""Recipe: what to compile. Rows of data and two functions that use diffusers; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.choice import choice
from aot.errors import BadInput
from aot.shape import Shape

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

SCOPES = ("whole", "regional")


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the pipeline that is compiled: `path` is its dotted name there.

    `blocks` are the names of its lists of repeated blocks; with none, regional scope compiles it whole.
    """

    path: str
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: overrides of the published configs by component, and the sizes the row is meant for."""

    about: str
    configs: Mapping[str, Mapping[str, Any]]
    shape: Shape  # the size built when none is asked for
    steps: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """A pipeline, its components, and how to make and call it.

    `make(variant, dtype)` returns the pipeline with seeded random weights; `load(path_or_repo, dtype)` one with real
    weights; `call(pipeline, shape, steps, seed)` the keyword arguments of one call of either, text already embedded.
    """

    name: str
    about: str
    divisor: int  # of height and width, in pixels
    min_steps: int
    components: tuple[Component, ...]
    variants: Mapping[str, Variant]
    make: Callable[[Variant, torch.dtype], DiffusionPipeline]
    load: Callable[[str, torch.dtype], DiffusionPipeline]
    call: Callable[[DiffusionPipeline, Shape, int, int], dict[str, Any]]

    def variant(self, name: str) -> Variant:
        """Raises BadInput naming the known variants."""
        return self.variants[choice(name, known=self.variants, field=f"--variant of {self.name}")]

    def pick(self, paths: tuple[str, ...]) -> tuple[Component, ...]:
        """The components at `paths`, or all when none is named. Raises BadInput naming the known ones."""
        known = {component.path: component for component in self.components}
        return tuple(known[choice(path, known=known, field="--components")] for path in paths) or self.components

    def pipeline(self, variant: Variant, *, dtype: str, weights: str | None) -> DiffusionPipeline:
        """The pipeline, ready to run: real weights when `weights` says where, else the variant with seeded random ones.

        Raises BadInput when there is no such folder or repository.
        """
        import torch

        kind: torch.dtype = getattr(torch, dtype)
        if weights is None:
            return self.make(variant, kind)
        try:
            return self.load(weights, kind)
        except (OSError, ValueError) as error:
            looked = "folder" if Path(weights).exists() else "folder or reachable repository"
            raise BadInput(
                f"--weights {weights!r}: no {self.name} pipeline could be loaded from this {looked}: {error}.",
                remedy="give a folder written by save_pretrained(), or a repository id this machine can reach.",
            ) from error
