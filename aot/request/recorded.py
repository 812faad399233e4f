"""Recorded: a build of what somebody recorded, as a value that crosses process boundaries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from aot.request.compilation import Compilation
from aot.request.options import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(Compilation):
    """Compile the calls of a Record, how and for which machine. `name` is the artifact's; `components` are those taken, all if empty."""

    name: str
    components: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"options": self.options.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        lists = {name: tuple(value[name]) for name in ("components", "also")}
        return cls(**value | lists | {"options": Options.parse(value["options"])})
