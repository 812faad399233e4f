"""Request: everything a user asks of one build or bench of a recipe, as a value that crosses process boundaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

from aot.choice import choice
from aot.errors import BadInput, Unsupported
from aot.request.compilation import Compilation
from aot.request.example import Example
from aot.request.options import Options
from aot.request.recipe import Component, Recipe
from aot.request.shape import Shape

DTYPES = ("float32", "bfloat16", "float16")
GUIDANCE = {"on": (True,), "off": (False,), "both": (True, False)}


@dataclass(frozen=True, slots=True)
class Request(Compilation):
    """Which calls of a recipe's pipeline to compile, how and for which machine. `weights` None means seeded random ones."""

    recipe: str
    variant: str
    shapes: tuple[Shape, ...]
    dtype: str = "float32"
    batches: tuple[int, ...] = (1,)
    guidance: str = "on"  # one of GUIDANCE
    frames: tuple[int, ...] = ()  # empty: the variant's own
    components: tuple[str, ...] = ()  # empty: all of the recipe's
    weights: str | None = None
    fuse_qkv: bool = False

    @property
    def name(self) -> str:
        """That of the artifact."""
        return self.recipe

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput or Unsupported, naming the field, for anything that can be known to be wrong before torch is imported."""
        variant = recipe.variant(self.variant)
        recipe.pick(self.components)
        for shape in self.shapes:
            shape.check(recipe.divisor)
        choice(self.dtype, known=DTYPES, field="--dtype")
        choice(self.guidance, known=GUIDANCE, field="--guidance")
        if self.options.dynamic:
            for shape in self.shapes:
                _check_dynamic(shape, recipe, recipe.pick(self.components))
        for frames in self.frames:
            _check_frames(frames, variant.frames, recipe.name)
        if self.fuse_qkv and not recipe.fuse_qkv:
            raise Unsupported(f"--fuse-qkv: {recipe.name}'s model cannot fuse its projections.", remedy="leave it out.")
        self.check_machine()

    def examples(self, recipe: Recipe) -> list[Example]:
        """The calls of the pipeline that are asked for."""
        frames = self.frames or (recipe.variant(self.variant).frames,)
        return [
            Example(shape, batch, guided, length)
            for shape, batch, guided, length in product(self.shapes, self.batches, GUIDANCE[self.guidance], frames)
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shapes": list(map(str, self.shapes)), "options": self.options.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        shapes = tuple(map(Shape.parse, value["shapes"]))
        options = Options.parse(value["options"])
        lists = {name: tuple(value[name]) for name in ("components", "batches", "frames", "also")}
        return cls(**value | lists | {"shapes": shapes, "options": options})


def _check_dynamic(shape: Shape, recipe: Recipe, components: tuple[Component, ...]) -> None:
    for component in components:
        buckets = recipe.buckets(component)
        if not any(bucket.holds(shape) for bucket in buckets):
            ranges = [f"{bucket} from {bucket.bounds[0] * bucket.divisor} to {bucket.bounds[1] * bucket.divisor}" for bucket in buckets]
            raise BadInput(
                f"shape {shape} is outside the dynamic graphs of {recipe.name}'s {component.path}: multiples of {', '.join(ranges)}.",
                remedy="choose a size inside, or leave --dynamic out.",
            )


def _check_frames(frames: int, length: int, recipe: str) -> None:
    if not length:
        raise BadInput(f"--frames {frames}: {recipe} makes images.", remedy="leave it out.")
    if frames not in (1, length):
        raise BadInput(f"--frames {frames}: the model's positions in time are for {length} frames.", remedy=f"give {length}, or 1.")
