"""Request: everything a user asks of one build or bench, as a value that crosses process boundaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from aot.choice import choice
from aot.options import Options
from aot.recipe import SCOPES, Recipe
from aot.shape import Shape

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Request:
    """What to compile, how and for which machine. `weights` None means seeded random ones."""

    recipe: str
    variant: str
    shapes: tuple[Shape, ...]
    gpu: str
    options: Options
    dtype: str = "float32"
    scope: str = "whole"
    components: tuple[str, ...] = ()  # empty: all of the recipe's
    weights: str | None = None
    fuse_qkv: bool = False
    cache_layer: bool = True

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput or Unsupported, naming the field, for anything that can be known to be wrong before torch is imported."""
        recipe.variant(self.variant)
        recipe.pick(self.components)
        for shape in self.shapes:
            shape.check(recipe.divisor)
        choice(self.dtype, known=DTYPES, field="--dtype")
        choice(self.scope, known=SCOPES, field="--scope")
        self.options.mode.check_artifact()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"shapes": list(map(str, self.shapes)), "options": self.options.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        shapes = tuple(map(Shape.parse, value["shapes"]))
        options = Options.parse(value["options"])
        return cls(**value | {"shapes": shapes, "options": options, "components": tuple(value["components"])})
