"""Saved: a Record as a file. It names classes, holds configs, fingerprints and calls; and no weight, prompt, picture or code.

Opening one makes models of diffusers and transformers from their configs, without weights, and believes none of it: the fingerprint
of each must be the recorded one, line by line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aot.cache_store.canonical import decode_loosely, encode
from aot.cache_store.errors import CodedError, Malformed
from aot.errors import BadInput, Unsupported

if TYPE_CHECKING:
    from torch import nn

    from aot.model.fingerprint import Fingerprint
    from aot.model.recorder import RecordedCall
    from aot.request.record import Record

FORM = 1
_LARGEST = 64 << 20  # bytes of a file: a hundred times the largest of ours
_PRIVATE = ("_name_or_path", "name_or_path", "_commit_hash")  # where somebody keeps a model


@dataclass(frozen=True, slots=True)
class Saved:
    """The file at `path`. Classes are those of diffusers and transformers, and of the modules named by `also`, which are imported."""

    path: str
    also: tuple[str, ...] = ()
    name: str = ""  # of the artifact; by default the recorded one

    @property
    def own_name(self) -> str:
        """The artifact's; where none is given, the file's, as such names are written."""
        return self.name or re.sub(r"[^a-z0-9.]+", "-", Path(self.path).stem.lower()).strip("-.") or "model"

    def check(self) -> None:
        """Raises BadInput where there is no file."""
        if not Path(self.path).is_file():
            raise BadInput(f"there is no file {self.path}.", remedy="`aot record`, or Record.save in Python, writes one.")

    def message(self, _: Path) -> dict[str, Any]:
        """For the process that builds."""
        return {"saved": {"path": str(Path(self.path).absolute()), "also": list(self.also), "name": self.name}}

    def record(self) -> Record:
        """The Record, with modules made again. Raises BadInput for a file that is none, Unsupported for what cannot be made here."""
        value = _read(Path(self.path))
        try:
            return _record(value, self.name, self.also)
        except CodedError:
            raise
        except Exception as error:  # whatever a class raises about a config that is not one of its own
            raise BadInput(
                f"{self.path} is no Record that can be read: {type(error).__name__}: {error}",
                remedy="record it again, with this version of aot.",
            ) from error


def save(record: Record, path: str | Path) -> None:
    """Write a Record to a file that any machine can build from, and anybody may read.

    Raises Unsupported for a model that its class and config do not make again: adapters, quantised weights, a class of the user's
    own. Such a one is built where it is, by `aot.build(record)`.
    """
    import torch

    roots = {name: _root(name, module) for name, module in record.roots.items()}
    made = _parts(roots, record.modules, also=_modules_of(record))
    for place, module in record.modules.items():
        if differs := _essence(made[place]).differs(_essence(module)):
            raise Unsupported(
                f"{place} is not what its class and config make: {differs}", remedy="build it where it is: aot.build(record, gpu=...)."
            )
    value = {
        "form": FORM,
        "name": record.name,
        "versions": {"torch": torch.__version__, **{name: version(name) for name in ("aot", "diffusers", "transformers")}},
        "roots": roots,
        "components": {place: _essence(module).to_json() for place, module in record.modules.items()},
        "calls": [call.to_json() for call in record.calls],
        "left": record.left,
    }
    raw = encode(value)
    part = Path(path).with_name(f".{Path(path).name}.part")
    part.write_bytes(raw)
    part.replace(path)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        raise BadInput(f"{path} is larger than any Record.", remedy="name a file that `aot record` wrote.")
    try:
        value = decode_loosely(raw, what="Record")
    except Malformed as error:
        raise BadInput(f"{path} is no Record: {error.message}", remedy="record it again.") from error
    if not isinstance(value, dict) or value.get("form") != FORM:
        raise BadInput(f"{path} is no Record of form {FORM}.", remedy="record it again, with this version of aot.")
    return value


def _record(value: dict[str, Any], name: str, also: Collection[str]) -> Record:
    from aot.model.fingerprint import Fingerprint
    from aot.model.recorder import RecordedCall
    from aot.request.record import Record

    made = _parts(value["roots"], value["components"], also=also)
    for place, lines in value["components"].items():
        if differs := Fingerprint.from_json(lines).differs(_essence(made[place])):
            versions = ", ".join(f"{library} {number}" for library, number in value["versions"].items())
            raise Unsupported(
                f"{place} comes out otherwise here than where it was recorded ({versions}): {differs}",
                remedy="install the versions that it was recorded with, or record it again.",
            )
    calls: list[RecordedCall] = [RecordedCall.from_json(call) for call in value["calls"]]
    if unknown := {call.component for call in calls} - set(made):
        raise ValueError(f"calls of {min(unknown)}, which is no component")
    return Record(name or str(value["name"]), modules=made, calls=calls, left=dict(value["left"]))


def _parts(roots: Mapping[str, Any], places: Collection[str], *, also: Collection[str]) -> dict[str, nn.Module]:
    made = {name: _made(name, root, also) for name, root in roots.items()}
    found = {}
    for place in places:
        name, _, inner = place.partition(".")
        found[place] = made[name].get_submodule(inner)
    return found


def _made(name: str, root: Mapping[str, Any], also: Collection[str]) -> nn.Module:
    import torch

    from aot.model.unweighted import class_named, unweighted

    module, _, qualname = root["class"].partition(":")
    dtype = getattr(torch, root["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{root['dtype']} is no dtype")
    _refuse_kernels(name, root["config"])
    found = unweighted(class_named(module, qualname, what=name, also=also), root["config"], dtype)
    for step in root["state"]:
        _STEPS[step](found)
    return found


def _refuse_kernels(name: str, config: Any) -> None:
    """A config may name kernels of a repository, and making the model would fetch and run them."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if "implementation" in key and isinstance(value, str) and ("/" in value or ":" in value):
                raise Unsupported(
                    f"{name} asks for the kernels {value!r} of a repository.", remedy="record it with kernels of torch's own."
                )
            _refuse_kernels(name, value)
    elif isinstance(config, list):
        for value in config:
            _refuse_kernels(name, value)


def _root(name: str, module: nn.Module) -> dict[str, Any]:
    """How to make a model again: its class, config, dtype, and what was done to it since. Raises Unsupported."""
    kind = type(module)
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_json_string") and not hasattr(module, "to_json_string"):
        raise Unsupported(
            f"{name}, a {kind.__qualname__}, has no config that it could be made from.", remedy="build it where it is: aot.build(record)."
        )
    writer: Any = module  # of diffusers; models of transformers leave it to their configs
    plain = json.loads(config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else writer.to_json_string())
    root = {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "config": {key: value for key, value in plain.items() if key not in _PRIVATE},
        "dtype": _dtype(module),
    }
    live = _essence(module)
    also = (kind.__module__,)
    ways = [tuple(step for step, taken in zip(_STEPS, way, strict=True) if taken) for way in product((False, True), repeat=len(_STEPS))]
    found = ((_essence(_made(name, {**root, "state": way}, also)), way) for way in ways)
    nearest = _first_or_nearest(found, live)
    return {**root, "state": list(nearest)}


def _first_or_nearest(found: Iterable[tuple[Fingerprint, tuple[str, ...]]], live: Fingerprint) -> tuple[str, ...]:
    """The first way that makes the very model, and else the one that comes nearest, for what still differs to be said."""
    distances: dict[tuple[str, ...], int] = {}
    for made, way in found:
        if made.differs(live) is None:
            return way
        distances[way] = made.distance(live)
    return min(distances, key=distances.__getitem__)


def _dtype(module: nn.Module) -> str:
    """That of most of its weights: some classes keep a few in float32."""
    counts: Counter[str] = Counter()
    for weight in module.parameters():
        counts[str(weight.dtype).removeprefix("torch.")] += weight.numel() * weight.is_floating_point()
    return max(counts, key=counts.__getitem__, default="float32")


def _essence(module: nn.Module) -> Fingerprint:
    """What making a model again must come to: whatever device it is on, and without what a first call makes."""
    from aot.model.fingerprint import Fingerprint

    return Fingerprint.of(module).essence


def _modules_of(record: Record) -> set[str]:
    return {type(module).__module__ for module in record.roots.values()}


def _fused(module: nn.Module) -> None:
    from aot.model.fusion import fuse_qkv

    fuse_qkv(module)


def _channels_last(module: nn.Module) -> None:
    """As `module.to(memory_format=...)` does it, which refuses models with 5-d weights."""
    import torch

    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


_STEPS: dict[str, Callable[[Any], None]] = {"fuse_qkv": _fused, "channels_last": _channels_last}
