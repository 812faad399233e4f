"""Named: what a build is made from where a few words name it, and the process that builds looks it up."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Named:
    """Crosses to the process that builds as its class's name and its fields, which are texts, or tuples of texts and dicts."""

    def message(self, _: Path) -> dict[str, Any]:
        """For the process that builds."""
        return {"source": type(self).__name__, "fields": asdict(self)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """What `message` told of."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def artifact_name(text: str) -> str:
    """`text` as artifacts are called: small letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "model"
