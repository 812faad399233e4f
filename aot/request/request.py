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
from aot.request.recipe import Recipe
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
        for frames in self.frames:
            _check_frames(frames, variant.frames, recipe.name)
        if self.fuse_qkv and not recipe.fuse_qkv:
            raise Unsupported(f"--fuse-qkv: {recipe.name}'s model cannot fuse its projections.", remedy="leave it out.")
        self.check_machine()

    def examples(self, recipe: Recipe) -> list[Example]:
        """The calls of the pipeline that are asked for; with dynamic sizes, where only one is named, further ones around it."""
        frames = self.frames or (recipe.variant(self.variant).frames,)
        shapes = recipe.around(self.shapes[0]) if self.options.dynamic and len(self.shapes) == 1 else self.shapes
        return [
            Example(shape, batch, guided, length)
            for shape, batch, guided, length in product(shapes, self.batches, GUIDANCE[self.guidance], frames)
        ]

    def about(self) -> dict[str, str]:
        """What was asked for, as parts of a key."""
        return {
            "recipe": self.recipe,
            "variant": "weights" if self.weights else self.variant,
            "shapes": " ".join(map(str, self.shapes)),
            "batch": " ".join(map(str, self.batches)),
            "guidance": self.guidance,
            "frames": " ".join(map(str, self.frames)),
            "dynamic": str(self.options.dynamic).lower(),
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shapes": list(map(str, self.shapes)), "options": self.options.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        shapes = tuple(map(Shape.parse, value["shapes"]))
        options = Options.parse(value["options"])
        lists = {name: tuple(value[name]) for name in ("components", "batches", "frames", "also", "lora_targets")}
        return cls(**value | lists | {"shapes": shapes, "options": options})


def _check_frames(frames: int, length: int, recipe: str) -> None:
    if not length:
        raise BadInput(f"--frames {frames}: {recipe} makes images.", remedy="leave it out.")
    if frames not in (1, length):
        raise BadInput(f"--frames {frames}: the model's positions in time are for {length} frames.", remedy=f"give {length}, or 1.")
