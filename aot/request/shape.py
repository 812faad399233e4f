"""Shape: the size of an image, as users write it."""

import re
from dataclasses import dataclass
from typing import Self

from aot.errors import BadInput


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Height and width in pixels. Text form `HEIGHTxWIDTH`; `parse(str(s)) == s`."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadInput unless `text` is two positive numbers joined by `x`."""
        match = re.fullmatch(r"([1-9]\d{0,4})[x*]([1-9]\d{0,4})", text)
        if not match:
            raise BadInput(f"shape {text!r} is not HEIGHTxWIDTH.", remedy="write for example --shape 512x768.")
        return cls(int(match[1]), int(match[2]))

    def check(self, divisor: int) -> Self:
        """This shape; raises BadInput, naming the nearest that works, unless both sides are multiples of `divisor`."""
        if self.height % divisor or self.width % divisor:
            near = type(self)(*(max(divisor, round(side / divisor) * divisor) for side in (self.height, self.width)))
            raise BadInput(f"shape {self} is not a multiple of {divisor} on both sides.", remedy=f"the nearest is {near}.")
        return self
