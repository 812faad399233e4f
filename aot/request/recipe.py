"""Recipe: what to compile. Rows of data and two functions that use diffusers; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.choice import choice
from aot.errors import BadInput
from aot.request.example import Example
from aot.request.shape import Shape

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, SchedulerMixin

BOUNDS = (64, 2048)  # pixels a side, of dynamic graphs: beyond, an index of a GPU kernel may need more than 32 bits


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sizes that one dynamic graph serves: both sides multiples of `divisor`, in pixels.

    `unless` leaves out those where both sides are multiples of it too: the model computes them in another way.
    """

    divisor: int
    unless: int = 0

    def __str__(self) -> str:
        return f"{self.divisor} unless {self.unless}" if self.unless else str(self.divisor)

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and most of a side, in units of the divisor.

        A level of one pixel is computed in another way too: with `unless`, the least side is beyond one of it.
        """
        return max(-(-BOUNDS[0] // self.divisor), 2, self.unless // self.divisor + 1), BOUNDS[1] // self.divisor

    def holds(self, shape: Shape) -> bool:
        """Whether the dynamic graph of this bucket serves `shape`."""
        least, most = self.bounds
        sides = (shape.height, shape.width)
        divides = all(side % self.divisor == 0 and least <= side // self.divisor <= most for side in sides)
        return divides and not (self.unless and all(side % self.unless == 0 for side in sides))


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the pipeline that is compiled: `path` is its dotted name there.

    `blocks` are the class names of its repeated blocks; with none, regional scope compiles it whole. `optional`: only where
    asked for by name. `buckets` are its dynamic graphs; with none, there is one of the recipe's divisor.
    """

    path: str
    blocks: tuple[str, ...] = ()
    optional: bool = False
    buckets: tuple[Bucket, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: overrides of the published configs by component, and the sizes the row is meant for."""

    about: str
    configs: Mapping[str, Mapping[str, Any]]
    shape: Shape  # the size built when none is asked for
    steps: int
    frames: int = 0  # of a video: the length that the model's positions are for


@dataclass(frozen=True, slots=True)
class Recipe:
    """A pipeline, its components, and how to make and call it.

    `scheduler()` is the pipeline's. `make(variant, components, scheduler)` returns the pipeline with random weights in
    float32, and those of its optional parts that `components` name; `load(path_or_repo, dtype, components)` one with real
    weights; `call(pipeline, example, steps, seed)` the keyword arguments of one call of either, the prompt embedded unless
    the pipeline has text encoders.
    """

    name: str
    about: str
    divisor: int  # of height and width, in pixels
    min_steps: int
    components: tuple[Component, ...]
    variants: Mapping[str, Variant]
    scheduler: Callable[[], SchedulerMixin]
    make: Callable[[Variant, tuple[str, ...], SchedulerMixin], DiffusionPipeline]
    load: Callable[[str, torch.dtype, tuple[str, ...]], DiffusionPipeline]
    call: Callable[[DiffusionPipeline, Example, int, int], dict[str, Any]]
    fuse_qkv: bool = True  # whether the denoiser's attention projections can be fused
    seed_shapes: tuple[Shape, ...] = ()  # what `--shapes seed` stands for

    def variant(self, name: str) -> Variant:
        """Raises BadInput naming the known variants."""
        return self.variants[choice(name, known=self.variants, field=f"--variant of {self.name}")]

    def pick(self, paths: tuple[str, ...]) -> tuple[Component, ...]:
        """The components at `paths`; when none is named, all but the optional ones. Raises BadInput naming the known ones."""
        known = {component.path: component for component in self.components}
        usual = tuple(component for component in self.components if not component.optional)
        return tuple(known[choice(path, known=known, field="--components")] for path in paths) or usual

    def buckets(self, component: Component) -> tuple[Bucket, ...]:
        """The sizes that the dynamic graphs of `component` serve."""
        return component.buckets or (Bucket(self.divisor),)

    def pipeline(
        self,
        variant: Variant,
        *,
        dtype: str,
        weights: str | None,
        components: tuple[str, ...] = (),
        tensors: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> DiffusionPipeline:
        """The pipeline, ready to run: real weights when `weights` says where, else the variant with seeded random ones.

        Random weights are made within `tensors()`, where a device that is only simulated gives them no data; a scheduler's
        few numbers are looked at when it is made, and always have them. Raises BadInput when there is no such folder or
        repository.
        """
        import torch

        kind: torch.dtype = getattr(torch, dtype)
        if weights is not None:
            pipeline = self._loaded(weights, kind, components)
        else:
            scheduler = self.scheduler()
            with tensors():
                made = self.make(variant, components, scheduler)
                pipeline = made if kind == torch.float32 else made.to(dtype=kind)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _loaded(self, weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> DiffusionPipeline:
        try:
            return self.load(weights, dtype, components)
        except (OSError, ValueError) as error:
            looked = "folder" if Path(weights).exists() else "folder or reachable repository"
            raise BadInput(
                f"--weights {weights!r}: no {self.name} pipeline could be loaded from this {looked}: {error}.",
                remedy="give a folder written by save_pretrained(), or a repository id this machine can reach.",
            ) from error
