"""Recorded: a build of what somebody recorded, as a value that crosses process boundaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from aot.errors import Unsupported
from aot.request.compilation import Compilation
from aot.request.mode import FREEZING
from aot.request.options import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Compilation):
    """Compile the calls of a Record, how and for which machine. `name` is the artifact's."""

    name: str

    def check_machine(self) -> None:
        """As every build's; and Unsupported for what needs weights, which a Record has not."""
        Compilation.check_machine(self)
        if self.options.mode.freezing:
            raise Unsupported(
                f"mode word {FREEZING!r}: it puts the weights into the graph, and this is built without them.",
                remedy=f"leave {FREEZING} out; or build a recipe, with --weights.",
            )

    def about(self) -> dict[str, str]:
        """What was asked for, as parts of a key."""
        return {"recipe": self.name, "variant": "recorded"}

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"options": self.options.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        lists = {name: tuple(value[name]) for name in ("components", "also", "lora_targets")}
        return cls(**value | lists | {"options": Options.parse(value["options"])})
