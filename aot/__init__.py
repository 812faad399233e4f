"""Compile a diffusion model once per machine type, ship the result like a package, start without compiling."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aot.version import VERSION

if TYPE_CHECKING:
    from aot.artifact.ledger import stats
    from aot.request.record import Record, record
    from aot.serving.lora import check_lora
    from aot.serving.metrics import export_metrics
    from aot.serving.nexfort import compile, compile_pipe, enable, restore
    from aot.serving.ready import ready
    from aot.verbs.build import build, plan
    from aot.verbs.lookup import lock, lookup
    from aot.verbs.pull import pull
    from aot.verbs.push import push
    from aot.verbs.verify import verify

__version__ = VERSION

__all__ = [
    "Record",
    "__version__",
    "build",
    "check_lora",
    "compile",
    "compile_pipe",
    "enable",
    "export_metrics",
    "lock",
    "lookup",
    "plan",
    "pull",
    "push",
    "ready",
    "record",
    "restore",
    "stats",
    "verify",
]

_HOMES = {
    "stats": "aot.artifact.ledger",
    **dict.fromkeys(("Record", "record"), "aot.request.record"),
    **dict.fromkeys(("compile", "compile_pipe", "enable", "restore"), "aot.serving.nexfort"),
    "ready": "aot.serving.ready",
    "check_lora": "aot.serving.lora",
    "export_metrics": "aot.serving.metrics",
    **dict.fromkeys(("build", "plan"), "aot.verbs.build"),
    **dict.fromkeys(("lock", "lookup"), "aot.verbs.lookup"),
    **{name: f"aot.verbs.{name}" for name in ("pull", "push", "verify")},
}


def __getattr__(name: str) -> Any:
    """The API is imported at first use: `import aot.cli` must not import torch."""
    if home := _HOMES.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'aot' has no attribute {name!r}")
