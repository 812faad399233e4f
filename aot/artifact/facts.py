"""Facts: what a process can say of a live module and of how it wants it compiled, in the key's own parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from aot.cache_store.canonical import encode
from aot.cache_store.digest import Digest
from aot.machine.settings import complete
from aot.machine.target import Target
from aot.model.attention import backends, others
from aot.model.fingerprint import Fingerprint
from aot.model.functions import source_digest
from aot.model.weights import LiveWeights
from aot.request.options import Options


def of_module(module: nn.Module, fingerprint: Fingerprint, options: Options) -> dict[str, str]:
    """Class, config, dtype, fingerprint and the source files of one component; under freezing the digest of its weights too.

    `fingerprint` is what an artifact is found by, the same before and after the component's first call; `state` is all of it.
    `attention`: the backend of diffusers that computes it, where that is not torch's own.
    """
    kind = type(module)
    first = next(module.parameters(), None)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "config": str(Digest.of(encode(_config(module)))),
        "dtype": "none" if first is None else str(first.dtype).removeprefix("torch."),
        "source": str(source_digest(module)),
        "fingerprint": str(fingerprint.stem),
        "state": str(fingerprint.digest),
        **({"attention": "+".join(found)} if (found := others(backends(module))) else {}),
        **({"weights": str(LiveWeights(module).digest())} if options.mode.freezing else {}),
    }


def of_wish(options: Options, target: Target) -> dict[str, str]:
    """Mode, memory format, options, process settings and target."""
    return {
        "mode": str(options.mode),
        "memory_format": options.memory_format,
        "options": encode(dict(options.options)).decode(),
        **{f"process.{name}": str(value).lower() for name, value in complete(options.process).items()},
        **target.parts(),
    }


def _config(module: nn.Module) -> dict[str, Any]:
    """The architecture's own config; where it came from and which release wrote it change nothing."""
    config = getattr(module, "config", None)
    if not isinstance(config, Mapping):
        return {}
    return {name: _plain(value) for name, value in config.items() if not name.startswith("_")}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case tuple() | list():
            return [_plain(item) for item in value]
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case _:
            return repr(value)
