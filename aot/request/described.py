"""Described: what a Record's file says, as JSON; and proving that the models come out of it again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count, product
from typing import TYPE_CHECKING, Any

from aot.errors import Unsupported
from aot.version import VERSION

if TYPE_CHECKING:
    from torch import nn

    from aot.model.fingerprint import Fingerprint
    from aot.request.record import Record

FORM = 1
_MOST_MODULES = 50_000  # ten times what the largest published model has
_PRIVATE = ("_name_or_path", "name_or_path", "_commit_hash")  # where somebody keeps a model
_ATTENTION = ("eager", "sdpa", "flex_attention", "math", "default")  # torch's own: others are fetched, and run, by name
_ELSEWHERE = "build it where it is: aot.build(record, gpu=...)."


def described(record: Record) -> dict[str, Any]:
    """Classes, configs, fingerprints and calls of a Record. Nothing is made for it, and nothing is proved: see `proved`.

    Raises Unsupported for a model that has no config.
    """
    import torch

    from aot.model.attention import others

    return {
        "form": FORM,
        "name": record.name,
        "versions": {"torch": torch.__version__, "aot": VERSION, **{name: version(name) for name in ("diffusers", "transformers")}},
        "roots": {name: _root(name, module) for name, module in record.roots.items()},
        "components": {place: essence(module).to_json() for place, module in record.modules.items()},
        "calls": [call.to_json() for call in record.calls],
        "left": record.left,
        **({"attention": found} if (found := others(record.attention)) else {}),
    }


def proved(value: Mapping[str, Any], *, also: Collection[str] = ()) -> dict[str, Any]:
    """With what was done to each model since it was made, so that classes and configs make the recorded components again.

    Makes them, without weights: a second or two each. `also`: further modules whose classes may be used. Raises Unsupported for a
    model that they do not make: adapters, quantised weights, a class of the user's own.
    """
    roots = {name: {**root, "state": _state(name, root, value["components"], also)} for name, root in value["roots"].items()}
    return {**value, "roots": roots}


def _state(name: str, root: Mapping[str, Any], components: Mapping[str, Any], also: Collection[str]) -> list[str]:
    from aot.model.fingerprint import Fingerprint

    recorded = {place: Fingerprint.from_json(lines) for place, lines in components.items() if place.partition(".")[0] == name}
    nearest: dict[int, str] = {}
    for way in _ways():
        found = parts({name: {**root, "state": way}}, recorded, also=also)
        made = {place: essence(found[place]) for place in recorded}
        differing = [(place, lines.distance(made[place]), lines.differs(made[place])) for place, lines in recorded.items()]
        differing = [each for each in differing if each[2]]
        if not differing:
            return list(way)
        place, _, why = differing[0]
        nearest.setdefault(sum(distance for _, distance, _ in differing), f"{place} is not what its class and config make: {why}")
    raise Unsupported(f"{nearest[min(nearest)]}.", remedy=_ELSEWHERE)


def _ways() -> Iterator[tuple[str, ...]]:
    """What may have been done to a model, the least first."""
    for taken in product((False, True), repeat=len(_STEPS)):
        yield tuple(step for step, done in zip(_STEPS, taken, strict=True) if done)


def parts(roots: Mapping[str, Any], places: Collection[str], *, also: Collection[str]) -> dict[str, nn.Module]:
    """The components at `places`, their models made again. Raises Unsupported, and what a class raises about its config."""
    made = {name: _made(name, root, also) for name, root in roots.items()}
    found = {}
    for place in places:
        name, _, inner = place.partition(".")
        found[place] = made[name].get_submodule(inner)
    return found


def _made(name: str, root: Mapping[str, Any], also: Collection[str]) -> nn.Module:
    from aot.model.signature import dtype_named
    from aot.model.unweighted import class_named, unweighted

    if not isinstance(root["config"], dict):  # a text would be taken for a place to read one from
        raise TypeError(f"the config of {name} is no object")
    _refuse_kernels(name, root["config"], named=False)
    module, _, qualname = root["class"].partition(":")
    with _few_modules(name):
        found = unweighted(class_named(module, qualname, what=name, also=also), root["config"], dtype_named(root["dtype"]))
    for step in root["state"]:
        _STEPS[step](found)
    return found


@contextmanager
def _few_modules(name: str) -> Iterator[None]:
    """Within, making a model ends with Unsupported where it comes to more modules than any has: a number in a stranger's config."""
    left = count(_MOST_MODULES, -1)

    def one_more(*_: Any) -> None:
        if not next(left):
            raise Unsupported(f"{name} comes to more than {_MOST_MODULES} modules.", remedy="look at the numbers of layers in its config.")

    from torch.nn.modules.module import register_module_module_registration_hook

    hook = register_module_module_registration_hook(one_more)
    try:
        yield
    finally:
        hook.remove()


def _refuse_kernels(name: str, config: Any, *, named: bool) -> None:
    """A config may name kernels of a repository, and making the model would fetch and run them. `named`: below a key that does."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            _refuse_kernels(name, value, named=named or "implementation" in str(key))
    elif isinstance(config, list):
        for value in config:
            _refuse_kernels(name, value, named=named)
    elif named and isinstance(config, str) and config not in _ATTENTION:
        raise Unsupported(f"{name} asks for the kernels {config!r}.", remedy="record it with attention of torch's own.")


def _root(name: str, module: nn.Module) -> dict[str, Any]:
    """How to make a model again: its class, config and dtype. Raises Unsupported."""
    kind = type(module)
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "to_json_string") and not hasattr(module, "to_json_string"):
        raise Unsupported(f"{name}, a {kind.__qualname__}, has no config that it could be made from.", remedy=_ELSEWHERE)
    writer: Any = module  # of diffusers; models of transformers leave it to their configs
    plain = json.loads(config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else writer.to_json_string())
    return {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "config": {key: value for key, value in plain.items() if key not in _PRIVATE},
        "dtype": _dtype(module),
    }


def _dtype(module: nn.Module) -> str:
    """That of most of its weights: some classes keep a few in float32."""
    counts: Counter[str] = Counter()
    for weight in module.parameters():
        counts[str(weight.dtype).removeprefix("torch.")] += weight.numel() * weight.is_floating_point()
    return max(counts, key=counts.__getitem__, default="float32")


def essence(module: nn.Module) -> Fingerprint:
    """What making a model again must come to: whatever device it is on, and without what a first call makes."""
    from aot.model.fingerprint import Fingerprint

    return Fingerprint.of(module).essence


def _fused(module: Any) -> None:
    from aot.model.fusion import fuse_qkv

    fuse_qkv(module)


def _channels_last(module: Any) -> None:
    """As `module.to(memory_format=...)` does it, which refuses models with 5-d weights."""
    import torch

    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


_STEPS = {"fuse_qkv": _fused, "channels_last": _channels_last}
