"""Compile a diffusion model once per machine type, ship the result like a package, start serving in about a second."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aot.artifact.ledger import stats
    from aot.building.pipeline import build
    from aot.request.record import Record, record
    from aot.serving.nexfort import compile, compile_pipe, restore

__all__ = ["Record", "build", "compile", "compile_pipe", "record", "restore", "stats"]

_HOMES = {
    "stats": "aot.artifact.ledger",
    "build": "aot.building.pipeline",
    "Record": "aot.request.record",
    "record": "aot.request.record",
    **dict.fromkeys(("compile", "compile_pipe", "restore"), "aot.serving.nexfort"),
}


def __getattr__(name: str) -> Any:
    """The API is imported at first use: `import aot.cli` must not import torch."""
    if home := _HOMES.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'aot' has no attribute {name!r}")
