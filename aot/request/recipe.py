"""Recipe: what to compile. Rows of data and two functions that use diffusers; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.choice import choice
from aot.errors import BadInput
from aot.request.example import Example
from aot.request.shape import Shape

_LEAST = 128  # pixels a side: below, the deepest levels of a UNet have one of something

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the pipeline that is compiled: `path` is its dotted name there. `optional`: only where asked for by name."""

    path: str
    optional: bool = False


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

    `make(variant, components)` returns the pipeline with random weights in float32, and those of its optional parts that
    `components` name; `load(path_or_repo, dtype, components)` one with real weights; `call(pipeline, example, steps, seed)` the
    keyword arguments of one call of either, the prompt embedded unless the pipeline has text encoders.
    """

    name: str
    about: str
    divisor: int  # of height and width, in pixels: what the pipeline itself takes no other sizes than
    min_steps: int
    components: tuple[Component, ...]
    variants: Mapping[str, Variant]
    make: Callable[[Variant, tuple[str, ...]], DiffusionPipeline]
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

    def around(self, shape: Shape) -> tuple[Shape, ...]:
        """The sizes that one graph is made of where only `shape` is named: itself, tall and wide ones from half of a side to twice,
        and one whose sides do not divide each other. In pixels, multiples of the divisor."""

        def side(pixels: int, times: float) -> int:
            return max(round(pixels * times / self.divisor), 1) * self.divisor

        least = {pixels: min(pixels, max(side(pixels, 0.5), _LEAST)) for pixels in (shape.height, shape.width)}
        tall = Shape(side(shape.height, 2), least[shape.width])
        wide = Shape(least[shape.height], side(shape.width, 2))
        return tuple(dict.fromkeys((shape, tall, wide, Shape(side(shape.height, 1.5), shape.width))))

    def pipeline(
        self,
        variant: Variant,
        *,
        dtype: str,
        weights: str | None,
        components: tuple[str, ...] = (),
        unweighted: bool = False,
    ) -> DiffusionPipeline:
        """The pipeline: real weights when `weights` says where, else the variant with seeded random ones; or `unweighted`, with
        parameters whose memory nobody has touched, to be recorded and not to be run.

        Raises BadInput when there is no such folder or repository.
        """
        import torch

        kind: torch.dtype = getattr(torch, dtype)
        if weights is not None:
            pipeline = self._loaded(weights, kind, components)
        elif unweighted:
            pipeline = self._without_weights(variant, kind, components)
        else:
            made = self.make(variant, components)
            pipeline = made if kind == torch.float32 else made.to(dtype=kind)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _without_weights(self, variant: Variant, dtype: torch.dtype, components: tuple[str, ...]) -> DiffusionPipeline:
        from aot.model.capture import modules_of
        from aot.model.unweighted import give_memory, without_memory

        with without_memory():
            made = self.make(variant, components).to(dtype=dtype)
        for module in modules_of(made).values():
            give_memory(module)
        return made

    def _loaded(self, weights: str, dtype: torch.dtype, components: tuple[str, ...]) -> DiffusionPipeline:
        try:
            return self.load(weights, dtype, components)
        except (OSError, ValueError) as error:
            looked = "folder" if Path(weights).exists() else "folder or reachable repository"
            raise BadInput(
                f"--weights {weights!r}: no {self.name} pipeline could be loaded from this {looked}: {error}.",
                remedy="give a folder written by save_pretrained(), or a repository id this machine can reach.",
            ) from error
