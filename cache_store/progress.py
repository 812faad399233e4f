"""Progress: how those who move bytes tell of it."""

from collections.abc import Callable
from typing import TypeAlias

Told: TypeAlias = Callable[[int], None]  # called with the number of bytes that have just been moved


def silent(_: int) -> None:
    """Tells nobody."""
