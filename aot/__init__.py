"""Compile a diffusion model once per machine type, ship the result like a package, start serving in about a second."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aot.artifact.ledger import stats
    from aot.serving.nexfort import compile, compile_pipe, restore

__all__ = ["compile", "compile_pipe", "restore", "stats"]


def __getattr__(name: str) -> Any:
    """The API is imported at first use: `import aot.cli` must not import torch."""
    if name == "stats":
        from aot.artifact.ledger import stats

        return stats
    if name in __all__:
        from aot.serving import nexfort

        return getattr(nexfort, name)
    raise AttributeError(f"module 'aot' has no attribute {name!r}")
