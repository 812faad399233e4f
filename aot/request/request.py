"""Request: everything a user asks of one build or bench, as a value that crosses process boundaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Self

from aot.choice import choice
from aot.errors import BadInput, Unsupported
from aot.machine.sku import ARCHITECTURES, CPU, find_sku
from aot.request.example import Example
from aot.request.mode import CUDAGRAPHS, FREEZING, TIMED_OPTIONS, Setting
from aot.request.options import Options
from aot.request.recipe import SCOPES, Component, Recipe
from aot.request.shape import Shape

DTYPES = ("float32", "bfloat16", "float16")
_NOT_REGIONAL = {
    FREEZING: "it puts each block's own weights into its code, and all blocks share theirs",
    CUDAGRAPHS: "it would record each block by itself, and copy what passes from one to the next",
}
GUIDANCE = {"on": (True,), "off": (False,), "both": (True, False)}


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
    batches: tuple[int, ...] = (1,)
    guidance: str = "on"  # one of GUIDANCE
    frames: tuple[int, ...] = ()  # empty: the variant's own
    components: tuple[str, ...] = ()  # empty: all of the recipe's
    weights: str | None = None
    fuse_qkv: bool = False
    cache_layer: bool = True
    simulate: bool = False  # compile for the GPU without having it
    untuned: bool = False  # leave out what times kernels on the device, though the mode says so
    also: tuple[str, ...] = ()  # further architectures, `sm_90`

    def check(self, recipe: Recipe) -> None:
        """Raises BadInput or Unsupported, naming the field, for anything that can be known to be wrong before torch is imported."""
        variant = recipe.variant(self.variant)
        recipe.pick(self.components)
        for shape in self.shapes:
            shape.check(recipe.divisor)
        choice(self.dtype, known=DTYPES, field="--dtype")
        choice(self.scope, known=SCOPES, field="--scope")
        choice(self.guidance, known=GUIDANCE, field="--guidance")
        if self.options.dynamic:
            for shape in self.shapes:
                _check_dynamic(shape, recipe, recipe.pick(self.components))
        for frames in self.frames:
            _check_frames(frames, variant.frames, recipe.name)
        if self.fuse_qkv and not recipe.fuse_qkv:
            raise Unsupported(f"--fuse-qkv: {recipe.name}'s model cannot fuse its projections.", remedy="leave it out.")
        if self.scope == "regional":
            for word, why in _NOT_REGIONAL.items():
                if word in self.options.mode.words:
                    raise Unsupported(
                        f"mode word {word!r} with --scope regional: {why}.", remedy=f"choose --scope whole, or leave {word} out."
                    )
        self.options.mode.check_artifact(CPU if self.gpu == CPU else "cuda")
        check_simulation(self)
        check_also(self)

    @property
    def inductor(self) -> dict[str, Setting]:
        """The Inductor configuration to compile with."""
        given = self.options.inductor
        return {name: value for name, value in given.items() if name not in TIMED_OPTIONS} if self.untuned else given

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


def check_simulation(request: Request) -> None:
    """Raises Unsupported for what cannot be compiled without the GPU itself, with the nearest that can."""
    if not request.simulate:
        return
    mode, name = request.options.mode, find_sku(request.gpu).name
    if mode.freezing:
        raise Unsupported(
            f"mode word {FREEZING!r} without the GPU: it folds the weights into the code on the device, and there is no {name} here.",
            remedy=f"leave {FREEZING} out, or build on a machine that has the GPU.",
        )
    timed = [*mode.timed, *sorted(TIMED_OPTIONS & set(request.options.options_of_inductor))]
    if timed and not request.untuned:
        raise Unsupported(
            f"{', '.join(timed)}: chooses kernels by timing them on the device, and there is no {name} here.",
            remedy=f"--untuned takes Inductor's default choices; --mode {mode.without_timing()} is the nearest without timing; "
            "or build on a machine that has the GPU.",
        )


def check_also(request: Request) -> None:
    """Raises BadInput or Unsupported for architectures that cannot be in one artifact with the target's."""
    if not request.also:
        return
    if request.gpu == CPU:
        raise Unsupported("--also: a CPU has no such architectures.", remedy="leave it out.")
    known = {str(arch): (arch.major, arch.minor) for arch in ARCHITECTURES}
    own = find_sku(request.gpu).architecture
    for text in request.also:
        choice(text, known=known, field="--also")
        if known[text] <= (own.major, own.minor):
            raise Unsupported(
                f"--also {text}: its code is made from that of {own}, which runs on newer architectures only.",
                remedy=f"build for the oldest (--gpu of {text}), and name the newer ones with --also.",
            )
