"""Key: what was asked, as named parts that can be printed, hashed and compared between machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest

# parts that only a build knows: a running process cannot say which calls somebody asked for, nor need it
ONLY_ASKED = (
    *("recipe", "variant", "shapes", "batch", "guidance", "frames", "dynamic", "scope", "layers", "tuning", "also", "lora", "layout"),
    "signatures/",
)


@dataclass(frozen=True, slots=True)
class Key:
    """Named parts. Text form: one `name=value` a line, sorted; `parse(str(k)) == k`."""

    parts: Mapping[str, str]

    def __str__(self) -> str:
        return "\n".join(f"{name}={value}" for name, value in sorted(self.parts.items()))

    @classmethod
    def parse(cls, text: str) -> Self:
        return cls(dict(line.split("=", 1) for line in text.splitlines()))

    @property
    def digest(self) -> Digest:
        return Digest.of(encode(dict(self.parts)))

    def diff(self, other: Key) -> Iterator[tuple[str, str | None, str | None]]:
        """Every part in which the two differ: its name, this key's value, the other's; None where one has no such part."""
        for name in sorted({*self.parts, *other.parts}):
            mine, theirs = self.parts.get(name), other.parts.get(name)
            if mine != theirs:
                yield name, mine, theirs

    def components(self) -> list[str]:
        """The paths of the components this key is about."""
        return sorted({name.split("/")[1] for name in self.parts if name.startswith("component/")})

    def of_component(self, path: str) -> dict[str, str]:
        """The parts about one component: class, config, source, fingerprint, dtype."""
        prefix = f"component/{path}/"
        return {name.removeprefix(prefix): value for name, value in self.parts.items() if name.startswith(prefix)}

    def shared(self) -> dict[str, str]:
        """The parts that a running process must match whatever it loads: mode, memory format, process settings, target."""
        return {name: value for name, value in self.parts.items() if not name.startswith((*ONLY_ASKED, "component/"))}


def component_parts(path: str, facts: Mapping[str, str]) -> dict[str, str]:
    return {f"component/{path}/{name}": value for name, value in facts.items()}
